"""Models as plain ``tf.Module``s: what recipes train, architectures whose weights come from elsewhere, and their blocks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tftoolkit.models.blocks import Attention, Dense, Embedding, LayerNorm, Mlp, RmsNorm, Rotary, TransformerBlock
    from tftoolkit.models.digits_cnn import DigitsCnn
    from tftoolkit.models.gpt2 import Gpt2
    from tftoolkit.models.llama import Llama

__all__ = [
    "Attention",
    "Dense",
    "DigitsCnn",
    "Embedding",
    "Gpt2",
    "LayerNorm",
    "Llama",
    "Mlp",
    "RmsNorm",
    "Rotary",
    "TransformerBlock",
]

# Name → module.
_HOME = {
    "Attention": "blocks",
    "Dense": "blocks",
    "DigitsCnn": "digits_cnn",
    "Embedding": "blocks",
    "Gpt2": "gpt2",
    "LayerNorm": "blocks",
    "Llama": "llama",
    "Mlp": "blocks",
    "RmsNorm": "blocks",
    "Rotary": "blocks",
    "TransformerBlock": "blocks",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
