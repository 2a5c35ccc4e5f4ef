"""A ResNet that knows the digits 0 to 4 learns 5 to 9 from ten pictures of each, beside one that knows nothing.

A digit lies anywhere in its picture, in any size, which ten pictures do not teach.
"""

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
    # The digits as they are, before they are scattered.
    config.image_size = None
    # Of the pictures in which they lie.
    config.picture_size = 32
    # From and to how many pixels of a picture's side a digit takes.
    config.sides = (10, 24)
    # Augmentation: each picture is moved by up to so many pixels, anew in every epoch. It teaches some of what other
    # digits teach: with 3, both get better, and nearer to each other.
    config.random_shift = 0
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
            # Of the training without what was learned before, to compare with: five times as many as with it. More
            # change nothing: it knows its 50 pictures by heart.
            "steps": 300,
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
    config.steps = 60
    config.warmup_steps = 6
    config.learning_rate = 1e-3
    config.steps_per_call = 10
    config.log_every = 10
    config.evaluate_every = 20
    config.checkpoint_every = 20
    # Of 180 pictures, of which a model that knows half turns a few in int8, to either side.
    config.max_drop = 0.03
    config.exports = ("saved_model", "tflite", "tflite_float16", "tflite_int8", "onnx")
    # What every run must reach, also of accuracy beyond that without what was learned before.
    config.at_least = ConfigDict({"accuracy": 0.4, "accuracy_gain": 0.1})
    return config
