"""Compiled ops: write a kernel once as an XLA FFI handler, run it in TensorFlow eagerly, in graphs and inside XLA."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import builder
from tftoolkit.custom_ops.engine.errors import BuildError, LoadError
from tftoolkit.custom_ops.engine.library import OpLibrary, builtin_folders, load, load_inline, open_library
from tftoolkit.custom_ops.engine.schema_tokens import SchemaError

if TYPE_CHECKING:
    from tftoolkit.custom_ops.adamw import adamw
    from tftoolkit.custom_ops.adamw_rows import adamw_rows, sum_rows
    from tftoolkit.custom_ops.batched_nms import batched_nms
    from tftoolkit.custom_ops.connected_components import connected_components
    from tftoolkit.custom_ops.crf_log_likelihood import crf_decode, crf_log_likelihood, crf_marginals
    from tftoolkit.custom_ops.ctc_loss import ctc_loss
    from tftoolkit.custom_ops.deform_conv2d import deform_conv2d
    from tftoolkit.custom_ops.dropout_add import dropout_add
    from tftoolkit.custom_ops.embedding_bag import embedding_bag
    from tftoolkit.custom_ops.engine.available import available
    from tftoolkit.custom_ops.engine.jax_host import as_jax
    from tftoolkit.custom_ops.engine.record_reader import index_records, read_records
    from tftoolkit.custom_ops.euclidean_distance_transform import euclidean_distance_transform
    from tftoolkit.custom_ops.flash_attention import flash_attention, flash_attention_varlen
    from tftoolkit.custom_ops.fused_linear_cross_entropy import fused_linear_cross_entropy
    from tftoolkit.custom_ops.geglu import geglu
    from tftoolkit.custom_ops.global_norm import global_norm
    from tftoolkit.custom_ops.grid_sample import grid_sample
    from tftoolkit.custom_ops.grid_sample.transforms import image_transform, rotate, translate
    from tftoolkit.custom_ops.grid_sample.warps import (
        dense_image_warp,
        interpolate_spline,
        resampler,
        sparse_image_warp,
    )
    from tftoolkit.custom_ops.layer_norm import layer_norm
    from tftoolkit.custom_ops.median_filter2d import median_filter2d
    from tftoolkit.custom_ops.opcheck import OpCheckError, OpReport, opcheck
    from tftoolkit.custom_ops.rand_augment import rand_augment
    from tftoolkit.custom_ops.rms_norm import rms_norm
    from tftoolkit.custom_ops.rnnt_loss import rnnt_loss, rnnt_loss_additive
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
    "adamw_rows",
    "as_jax",
    "available",
    "batched_nms",
    "connected_components",
    "crf_decode",
    "crf_log_likelihood",
    "crf_marginals",
    "ctc_loss",
    "deform_conv2d",
    "dense_image_warp",
    "dropout_add",
    "embedding_bag",
    "euclidean_distance_transform",
    "flash_attention",
    "flash_attention_varlen",
    "fused_linear_cross_entropy",
    "geglu",
    "global_norm",
    "grid_sample",
    "image_transform",
    "index_records",
    "interpolate_spline",
    "layer_norm",
    "load",
    "load_inline",
    "median_filter2d",
    "opcheck",
    "open_library",
    "rand_augment",
    "read_records",
    "resampler",
    "rms_norm",
    "rnnt_loss",
    "rnnt_loss_additive",
    "roi_align",
    "roi_pool",
    "rotary_embedding",
    "rotate",
    "soft_nms",
    "softmax_cross_entropy",
    "sparse_image_warp",
    "sum_rows",
    "swiglu",
    "translate",
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
    "crf_decode": "crf_log_likelihood",
    "crf_marginals": "crf_log_likelihood",
    "flash_attention_varlen": "flash_attention",
    "rnnt_loss_additive": "rnnt_loss",
    "dense_image_warp": "grid_sample.warps",
    "image_transform": "grid_sample.transforms",
    "interpolate_spline": "grid_sample.warps",
    "resampler": "grid_sample.warps",
    "rotate": "grid_sample.transforms",
    "sparse_image_warp": "grid_sample.warps",
    "sum_rows": "adamw_rows",
    "translate": "grid_sample.transforms",
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
