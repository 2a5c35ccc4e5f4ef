"""Compiled ops: write a kernel once as an XLA FFI handler, run it in TensorFlow eagerly, in graphs and inside XLA."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import builder
from tftoolkit.custom_ops.engine.errors import BuildError, LoadError
from tftoolkit.custom_ops.engine.library import OpLibrary, builtin_folders, load, load_inline, open_library
from tftoolkit.custom_ops.engine.schema_parser import SchemaError

if TYPE_CHECKING:
    from tftoolkit.custom_ops.adamw import adamw
    from tftoolkit.custom_ops.batched_nms import batched_nms
    from tftoolkit.custom_ops.deform_conv2d import deform_conv2d
    from tftoolkit.custom_ops.dropout_add import dropout_add
    from tftoolkit.custom_ops.engine.available import available
    from tftoolkit.custom_ops.engine.jax_host import as_jax
    from tftoolkit.custom_ops.engine.record_reader import index_records, read_records
    from tftoolkit.custom_ops.flash_attention import flash_attention, flash_attention_varlen
    from tftoolkit.custom_ops.fused_linear_cross_entropy import fused_linear_cross_entropy
    from tftoolkit.custom_ops.geglu import geglu
    from tftoolkit.custom_ops.global_norm import global_norm
    from tftoolkit.custom_ops.layer_norm import layer_norm
    from tftoolkit.custom_ops.opcheck import OpCheckError, OpReport, opcheck
    from tftoolkit.custom_ops.rand_augment import rand_augment
    from tftoolkit.custom_ops.rms_norm import rms_norm
    from tftoolkit.custom_ops.roi_align import roi_align
    from tftoolkit.custom_ops.roi_pool import roi_pool
    from tftoolkit.custom_ops.rotary_embedding import rotary_embedding
    from tftoolkit.custom_ops.soft_nms import soft_nms
    from tftoolkit.custom_ops.softmax_cross_entropy import softmax_cross_entropy
    from tftoolkit.custom_ops.swiglu import swiglu

__all__ = [
    "BuildError",
    "LoadError",
    "OpCheckError",
    "OpLibrary",
    "OpReport",
    "SchemaError",
    "adamw",
    "as_jax",
    "available",
    "batched_nms",
    "deform_conv2d",
    "dropout_add",
    "flash_attention",
    "flash_attention_varlen",
    "fused_linear_cross_entropy",
    "geglu",
    "global_norm",
    "index_records",
    "layer_norm",
    "load",
    "load_inline",
    "opcheck",
    "open_library",
    "rand_augment",
    "read_records",
    "rms_norm",
    "roi_align",
    "roi_pool",
    "rotary_embedding",
    "soft_nms",
    "softmax_cross_entropy",
    "swiglu",
]


def _emulated_recipe(*arguments: Any, **options: Any) -> builder.Recipe:
    from tftoolkit.custom_ops import emulation  # read only by those who use it

    return emulation.library_recipe(*arguments, **options)


builder.CUDA_RECIPES["emulated"] = _emulated_recipe

# Built-in ops import TensorFlow and may have to be compiled, so each is loaded when it is first asked for.
_OPS = frozenset(builtin_folders())


# What needs TensorFlow or JAX, by the module it comes from.
_LAZY = {
    "as_jax": "engine.jax_host",
    "available": "engine.available",
    "index_records": "engine.record_reader",
    "read_records": "engine.record_reader",
    "opcheck": "opcheck",
    "OpCheckError": "opcheck",
    "OpReport": "opcheck",
    "flash_attention_varlen": "flash_attention",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"tftoolkit.custom_ops.{_LAZY[name]}"), name)
    if name in _OPS:
        importlib.import_module(f"tftoolkit.custom_ops.{name}")
        return globals()[name]
    raise AttributeError(f"module 'tftoolkit.custom_ops' has no attribute {name!r}; it has {', '.join(__all__)}")


class _Package(ModuleType):
    """Some functions bear their module's name. Importing the module would put the module there instead."""

    def __setattr__(self, name: str, value: Any) -> None:
        is_function = name in _OPS or name == "opcheck"
        super().__setattr__(name, getattr(value, name) if is_function else value)


sys.modules[__name__].__class__ = _Package
