"""Eight spoken words by 62 voices of espeak-ng, twelve of which are held out for the test."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """``at_least`` is what every run must reach."""
    config = ConfigDict()
    # The kind of work: a module of tftoolkit.jobs.
    config.job = "audio_classification"
    # Of the weights, the order of the clips, noise, masks and dropout.
    config.seed = 0

    # Bands of the spectrogram.
    config.mels = 40
    # Samples of a frame; there are 8,000 in a second.
    config.fft_length = 256
    # Samples from one frame to the next.
    config.hop_length = 128
    # Augmentation: a clip's signal-to-noise ratio in dB, from and to.
    config.noise_db = (5.0, 30.0)
    config.masks = ConfigDict(
        {
            # Augmentation: how many bands of mels are hidden.
            "frequency_masks": 2,
            # Mels of such a band, at most.
            "max_mels": 6,
            # Augmentation: how many stretches of frames are hidden.
            "time_masks": 2,
            # Frames of such a stretch, at most.
            "max_frames": 10,
        }
    )

    # Clips per step.
    config.batch_size = 32
    # How many steps to train; 25 are an epoch.
    config.steps = 765
    config.model = ConfigDict(
        {
            # Outputs of the first convolution; the others have two and four times as many.
            "width": 16,
            # Probability with which an input of the linear layer is dropped in training.
            "dropout": 0.3,
        }
    )
    # Of AdamW, at its highest; it rises during the warm-up and falls along a cosine.
    config.learning_rate = 3e-3
    # Steps in which the learning rate rises.
    config.warmup_steps = 50
    # Of AdamW: how much of each weight is taken off per step, times the learning rate.
    config.weight_decay = 1e-2
    # The gradients' global norm is cut to this.
    config.clip_norm = 1.0

    # See trainers.Runner. "auto" takes graph here: on a CPU, TensorFlow's own convolutions are faster than XLA's.
    config.runner = "auto"
    # How many steps the runner makes in one call.
    config.steps_per_call = 51
    # Steps between two lines in metrics.jsonl.
    config.log_every = 51
    # Steps between two evaluations on the voices of the test.
    config.evaluate_every = 153
    # Steps between two checkpoints.
    config.checkpoint_every = 153

    # How much accuracy on the voices of the test an exported file may lose.
    config.max_drop = 0.01
    # What to export; see tftoolkit.jobs.exports.
    config.exports = ("saved_model", "tflite", "tflite_float16", "tflite_dynamic", "onnx")

    # On voices that were not heard in training: what every run must reach.
    config.at_least = ConfigDict({"accuracy": 0.93})
    return config
