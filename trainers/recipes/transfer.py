"""A ResNet that knows the digits 0 to 4 learns 5 to 9 from ten examples of each, beside one that knows nothing."""

from ml_collections import ConfigDict

from tftoolkit.trainers.recipes import digits


def get_config() -> ConfigDict:
    """As the recipe ``digits``, but for what stands here."""
    config = digits.get_config()
    config.job = "transfer"
    # Classes to begin with, and as many new ones.
    config.classes = 5
    # Examples of each new class.
    config.shots = 10
    config.image_size = 32
    # Augmentation: each image is moved by up to so many of its 32 pixels, anew in every epoch.
    config.random_shift = 3
    config.model = ConfigDict(
        {
            # One of tftoolkit.models: resnet18, resnet34 or resnet50; what follows are its arguments.
            "name": "resnet18",
            # Channels of the first stage, 64 in the paper.
            "width": 16,
        }
    )
    config.pretraining = ConfigDict(
        {
            # On the classes to begin with, of which all examples are known.
            "steps": 450,
            # Of AdamW, at its highest.
            "learning_rate": 3e-3,
        }
    )
    config.scratch = ConfigDict(
        {
            # Of the training without what was learned before, to compare with: as many as with it.
            "steps": 30,
            # Of AdamW, at its highest.
            "learning_rate": 3e-3,
        }
    )
    # Pictures of the new classes (without their names) that set the ranges of the int8 file's activations.
    config.calibration_examples = 300
    # Patterns of the weights that stay as they are.
    config.frozen = ("conv1/*", "bn1/*", "layer1/*")
    config.rate_factors = ConfigDict(
        {
            # By which these weights' learning rate is multiplied: what lies nearer the picture learns more slowly.
            "layer2/*": 0.1,
            # The same.
            "layer3/*": 0.3,
        }
    )
    # How many steps to train on the new classes.
    config.steps = 30
    config.warmup_steps = 3
    config.learning_rate = 1e-3
    config.steps_per_call = 10
    config.log_every = 10
    config.evaluate_every = 10
    config.checkpoint_every = 10
    config.exports = ("saved_model", "tflite", "tflite_float16", "tflite_int8", "onnx")
    # By how much the accuracy is to be higher than that of as many steps without what was learned before. After 300
    # steps that one reaches 97 %, too: with digits, what was learned before saves time.
    config.at_least = ConfigDict({"accuracy_gain": 0.1})
    return config
