"""A table, wine: 13 measurements of 178 wines of three growers, 36 of them held out for the test."""

from ml_collections import ConfigDict

from tftoolkit.trainers.recipes import tabular


def get_config() -> ConfigDict:
    """As the recipe ``tabular``, but for what stands here."""
    config = tabular.get_config()
    config.dataset = "wine"
    # How many steps to train; 400 are 100 epochs.
    config.steps = 400
    # Sizes of the hidden layers.
    config.model.hidden = (64, 64)
    config.exports = ("saved_model", "tflite", "tflite_float16", "tflite_dynamic", "onnx")
    config.at_least = ConfigDict({"accuracy": 0.96})
    return config
