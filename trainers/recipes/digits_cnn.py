"""Handwritten digits, enlarged to 28×28, with the convolutional network of tutorials in Keras 3."""

from ml_collections import ConfigDict

from tftoolkit.trainers.recipes import digits


def get_config() -> ConfigDict:
    """As the recipe ``digits``, but for what stands here."""
    config = digits.get_config()
    config.image_size = 28
    # Augmentation: each image is moved by up to so many of its 28 pixels, anew in every epoch.
    config.random_shift = 2
    config.model = ConfigDict(
        {
            # One of tftoolkit.models; what follows are its arguments.
            "name": "convolutional_classifier",
            # Outputs of the convolution.
            "filters": 32,
            # Size of the hidden layer.
            "hidden": 64,
        }
    )
    config.learning_rate = 2e-3
    config.exports = ("saved_model", "tflite", "tflite_float16", "tflite_int8", "onnx")
    config.at_least = ConfigDict({"accuracy": 0.985})
    return config
