"""Small models as plain ``tf.Module``: the recipes train them, and they show how to use the compiled ops."""

from tftoolkit.models.classifiers import convolutional_classifier, dense_classifier
from tftoolkit.models.digits_cnn import DigitsCnn

__all__ = ["DigitsCnn", "convolutional_classifier", "dense_classifier"]
