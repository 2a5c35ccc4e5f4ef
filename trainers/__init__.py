"""GradientTape steps, the training loop and its checkpoints."""

from tftoolkit.trainers import optimizers, schedules
from tftoolkit.trainers.checkpointer import Checkpointer, CheckpointError, CheckpointMismatchError
from tftoolkit.trainers.run_lock import RunLockedError
from tftoolkit.trainers.runner import Runner
from tftoolkit.trainers.step import Step
from tftoolkit.trainers.trainer import Summary, Trainer, TrainingDivergedError
from tftoolkit.trainers.update import Update

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "Checkpointer",
    "RunLockedError",
    "Runner",
    "Step",
    "Summary",
    "Trainer",
    "TrainingDivergedError",
    "Update",
    "optimizers",
    "schedules",
]
