"""Handwritten digits, enlarged to 28×28, with two hidden layers in Keras 3; batch norm, dropout as options."""

from ml_collections import ConfigDict

from tftoolkit.trainers.recipes import digits


def get_config() -> ConfigDict:
    """As the recipe ``digits``, but for what stands here."""
    config = digits.get_config()
    config.image_size = 28
    # Augmentation: each image is moved by up to so many of its 28 pixels, anew in every epoch.
    config.random_shift = 1
    config.model = ConfigDict(
        {
            # One of tftoolkit.models; what follows are its arguments.
            "name": "dense_classifier",
            # Sizes of the hidden layers.
            "hidden": (64, 64),
            # Probability with which an output of a hidden layer is dropped in training; 0.3 in the tutorials' variant.
            "dropout": 0.0,
            # Normalise before each activation.
            "batch_norm": False,
            # LeakyReLU in place of ReLU.
            "leaky": False,
        }
    )
    config.exports = ("saved_model", "tflite", "tflite_float16", "tflite_int8", "onnx")
    config.at_least = ConfigDict({"accuracy": 0.96})
    return config
