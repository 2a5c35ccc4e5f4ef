"""Small models as plain ``tf.Module``: the recipes train them, and they show how to use the compiled ops."""

from tftoolkit.models.audio_classifier import LogMel, SpectrogramClassifier
from tftoolkit.models.classifiers import convolutional_classifier, dense_classifier
from tftoolkit.models.digits_cnn import DigitsCnn
from tftoolkit.models.heat_map_detector import Detections, HeatMapDetector, detection_losses, detections
from tftoolkit.models.tabular_network import TabularNetwork

__all__ = [
    "Detections",
    "DigitsCnn",
    "HeatMapDetector",
    "LogMel",
    "SpectrogramClassifier",
    "TabularNetwork",
    "convolutional_classifier",
    "dense_classifier",
    "detection_losses",
    "detections",
]
