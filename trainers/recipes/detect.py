"""Finding digits: up to six of them scattered on scenes of 96×96 pixels, with a detector of heat maps."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """``at_least`` is what every run must reach."""
    config = ConfigDict()
    # The kind of work: a module of tftoolkit.jobs.
    config.job = "detection"
    # Where the digits come from: its name in TFDS.
    config.dataset = "digits"
    # The value that shall become 1: these images have 17 levels, 0 to 16.
    config.max_pixel = 16.0
    # Height and width of a scene.
    config.scene_size = 96
    # Digits in a scene, at most.
    config.most = 6
    # Scenes to train on, made of digits of the training split.
    config.train_scenes = 2000
    # Scenes of the test, made of digits of the test split.
    config.test_scenes = 300
    # Of the weights and the order of the scenes; the scenes are the same in every run.
    config.seed = 0

    # Scenes per step.
    config.batch_size = 16
    # How many steps to train; 750 are 6 epochs.
    config.steps = 750
    config.model = ConfigDict(
        {
            # Outputs of the last convolutions.
            "width": 64
        }
    )
    # Of AdamW, at its highest; it rises during the warm-up and falls along a cosine.
    config.learning_rate = 3e-3
    # Steps in which the learning rate rises.
    config.warmup_steps = 100
    # Of AdamW: how much of each weight is taken off per step, times the learning rate.
    config.weight_decay = 1e-2
    # The gradients' global norm is cut to this.
    config.clip_norm = 10.0

    # See trainers.Runner. "auto" takes graph here: on a CPU, TensorFlow's own convolutions are faster than XLA's.
    config.runner = "auto"
    # How many steps the runner makes in one call.
    config.steps_per_call = 25
    # Steps between two lines in metrics.jsonl.
    config.log_every = 25
    # Steps between two evaluations on the test scenes.
    config.evaluate_every = 125
    # Steps between two checkpoints.
    config.checkpoint_every = 125

    # How much mAP an exported file may lose.
    config.max_drop = 0.02
    # What to export; see tftoolkit.jobs.exports.
    config.exports = ("saved_model", "tflite", "tflite_float16", "tflite_int8", "onnx")

    # Mean average precision on the test scenes, boxes that overlap by half being right: what every run must reach.
    config.at_least = ConfigDict({"map_50": 0.85})
    return config
