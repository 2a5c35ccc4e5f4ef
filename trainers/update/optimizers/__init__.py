"""Optimizers written in TensorFlow operations, for lists of ``tf.Variable``: one file each, on what they share."""

from tftoolkit.trainers.update.optimizers.adafactor import Adafactor
from tftoolkit.trainers.update.optimizers.adagrad import Adagrad
from tftoolkit.trainers.update.optimizers.adam import Adam, AdamW
from tftoolkit.trainers.update.optimizers.base import Optimizer, assign_if
from tftoolkit.trainers.update.optimizers.lamb import Lamb
from tftoolkit.trainers.update.optimizers.lazy_adam import LazyAdam
from tftoolkit.trainers.update.optimizers.lion import Lion
from tftoolkit.trainers.update.optimizers.lookahead import Lookahead
from tftoolkit.trainers.update.optimizers.muon import Muon
from tftoolkit.trainers.update.optimizers.rmsprop import RMSprop
from tftoolkit.trainers.update.optimizers.rule import Rule, Turn
from tftoolkit.trainers.update.optimizers.sgd import Sgd
from tftoolkit.trainers.update.optimizers.swa import SWA

__all__ = [
    "SWA",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lamb",
    "LazyAdam",
    "Lion",
    "Lookahead",
    "Muon",
    "Optimizer",
    "RMSprop",
    "Rule",
    "Sgd",
    "Turn",
    "assign_if",
]
