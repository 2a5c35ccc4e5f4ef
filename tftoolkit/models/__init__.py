"""Small models as plain ``tf.Module``: the recipes train them, and they show how to use the compiled ops."""

from tftoolkit.models.classifiers import convolutional_classifier, dense_classifier
from tftoolkit.models.digits_cnn import DigitsCnn
from tftoolkit.models.tabular_network import TabularNetwork

__all__ = ["DigitsCnn", "TabularNetwork", "convolutional_classifier", "dense_classifier"]
