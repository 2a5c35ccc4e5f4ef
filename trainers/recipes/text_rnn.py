"""The English text that comes with Python, byte by byte, by a recurrent network."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """``at_most`` is what every run must reach."""
    config = ConfigDict()
    # The kind of work: a module of tftoolkit.jobs.
    config.job = "language_modelling"
    # "python": its handbook and docstrings, 1.2 MB; or a folder with .txt files.
    config.corpus = "python"
    # 256: bytes. More: as many tokens by byte-pair encoding.
    config.vocabulary = 256
    # Of the weights, the order of the examples and dropout.
    config.seed = 0

    # Rows of text side by side, each of which goes on in the next batch.
    config.batch_size = 64
    # Tokens per window: so far back go gradients.
    config.length = 64
    # Whether the state goes on, too, from a batch to the next.
    config.carry_state = True
    # How many steps to train; 285 are once through the text.
    config.steps = 500

    config.model = ConfigDict(
        {
            # One of tftoolkit.models; what follows are its arguments.
            "name": "Recurrent",
            # "simple", "gru" or "lstm".
            "cell": "gru",
            # Layers one above the other.
            "layers": 1,
            # Of each layer's output.
            "width": 256,
            # Width of the embedding.
            "embedding": 64,
            # Probability with which an element of a layer's output is dropped in training.
            "dropout": 0.0,
        }
    )
    # "adamw", or "muon": that for matrices of hidden layers, AdamW for the other weights.
    config.optimizer = "adamw"
    # At its highest; it rises during the warm-up and falls along a cosine.
    config.learning_rate = 5e-3
    # Steps in which the learning rate rises.
    config.warmup_steps = 50
    # How much of each weight is taken off per step, times the learning rate.
    config.weight_decay = 1e-2
    # AdamW as one compiled op; False needs no C++ compiler.
    config.fused = False
    # The gradients' global norm is cut to this.
    config.clip_norm = 1.0

    # See trainers.Runner. "auto" takes xla_chunk here.
    config.runner = "auto"
    # How many steps the runner makes in one call.
    config.steps_per_call = 20
    # Steps between two lines in metrics.jsonl.
    config.log_every = 20
    # Steps between two evaluations on the held-out text.
    config.evaluate_every = 100
    # Rows of the held-out text side by side in an evaluation.
    config.evaluation_rows = 16
    # Steps between two checkpoints.
    config.checkpoint_every = 100

    # What the samples in the report begin with.
    config.prompt = "The "
    # How long they are, in tokens.
    config.sample_tokens = 600
    # At which temperatures they are drawn.
    config.temperatures = (0.5, 1.0)

    # What to export; see tftoolkit.jobs.exports. TFLite files have the signatures "prefill" and "decode".
    config.exports = ("saved_model", "tflite", "tflite_float16", "tflite_dynamic", "tflite_int4", "onnx")
    # Whether to make a web page on which the float32 file writes; needs npm and Chromium.
    config.web_page = True
    # Tokens that "prefill" reads at once.
    config.prefill = 8
    # How many tokens a file's cache has room for, prompt included.
    config.capacity = 256
    # How many tokens each file writes to be compared with TensorFlow's.
    config.compared_tokens = 200
    # How many more bits per character an exported file may need.
    config.max_drop = 0.05
    # The same for weights of 4 bits.
    config.max_drop_int4 = 0.25

    # Of the held-out text: what every run must reach.
    config.at_most = ConfigDict({"bits_per_character": 2.3})
    return config
