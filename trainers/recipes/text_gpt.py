"""The English text that comes with Python, by a small transformer on packed documents of byte pairs."""

from ml_collections import ConfigDict

from tftoolkit.trainers.recipes import text_rnn


def get_config() -> ConfigDict:
    """As the recipe ``text_rnn``, but for what stands here."""
    config = text_rnn.get_config()
    config.vocabulary = 4096
    # Windows per step, each of as many whole documents as fit, or of a piece of one.
    config.batch_size = 8
    # Tokens per window.
    config.length = 256
    config.steps = 240
    config.steps_per_call = 10
    config.log_every = 10
    config.model = ConfigDict(
        {
            # One of tftoolkit.models; what follows are its arguments.
            "name": "Llama",
            "layers": 4,
            "width": 192,
            # Of the attention; each is width / heads wide.
            "heads": 6,
            # Of keys and values, each shared by some of the others.
            "kv_heads": 2,
            # Width of the feed-forward layers.
            "hidden": 512,
            # How many positions there are, which limits what generate writes.
            "context": 512,
            # Of the first weights.
            "deviation": 0.02,
            # The head's weights are the embedding's.
            "tied": True,
            # Probability with which an element of what a layer adds is dropped in training.
            "dropout": 0.1,
        }
    )
    del config.carry_state  # there is none
    config.optimizer = "muon"
    config.fused = True
    config.learning_rate = 1e-2
    config.weight_decay = 0.1
    config.evaluate_every = 60
    config.checkpoint_every = 60
    config.sample_tokens = 250
    config.prompt = "The"  # a space behind it would be a token of its own, as in tables
    config.prefill = 16
    config.at_most = ConfigDict({"bits_per_character": 2.05})
    return config
