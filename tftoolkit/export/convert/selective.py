"""Selective quantisation: a float32 .tflite quantised by ai-edge-quantizer, except for the layers that stay in float.

Why not TensorFlow's converter: it can leave out ops only through ``QuantizationDebugger`` and private arguments of
``mlir_quantize``, by exact names of an intermediate program. ai-edge-quantizer takes patterns, and its recipes are
public.
"""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tftoolkit.export.convert.convert import Calibration
from tftoolkit.export.report import ExportError
from tftoolkit.export.staging import quiet

# ai-edge-quantizer's recipe for each of our modes that can be selective.
RECIPES = {"int8": "static_wi8_ai8", "int16x8": "static_wi8_ai16", "dynamic": "dynamic_wi8_afp32"}
MAX_NAMES = 30
Recipe = Sequence[Mapping[str, Any]]


def quantize(
    model: bytes, mode: str | Recipe, keep_float: Sequence[str], calibration: Calibration, integer_io: bool
) -> bytes:
    """The float32 model quantised by the recipe, without the ops that a pattern of ``keep_float`` finds.

    Raises ValueError where a pattern finds nothing, ExportError where the quantiser fails.
    """
    calibrator, qtyping, quantizer, recipe = _library()
    kept = _kept(model, keep_float)
    rules = getattr(recipe, RECIPES[mode])() if isinstance(mode, str) else list(mode)
    names = qtyping.TFLOperationName
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            worker = quantizer.Quantizer(bytearray(model))
            worker.load_quantization_recipe(rules)
            for output in kept:  # rules that come later win; "add" must not find "add_1"
                scope = f"^{re.escape(output)};"
                worker.update_quantization_recipe(scope, names.ALL_SUPPORTED, algorithm_key="no_quantize")
            if not integer_io:
                for end in (names.INPUT, names.OUTPUT):
                    worker.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
            ranges = None
            if worker.need_calibration:
                calibration_pass = calibrator.Calibrator(bytearray(model), num_threads=2, qsv_update_func=_widened)
                calibration_pass.calibrate(dict(calibration), _rules(worker))
                ranges = calibration_pass.get_model_qsvs()
            return bytes(worker.quantize(ranges).quantized_model)
    except Exception as error:  # it raises many kinds
        raise ExportError("convert", f"ai-edge-quantizer: {type(error).__name__}: {str(error)[:500]}") from error


def _rules(worker: Any) -> Any:
    """The rules of a Quantizer in the form that its Calibrator takes."""
    from ai_edge_quantizer import recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(worker.get_quantization_recipe())
    return manager


def _widened(known: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    """The range that covers both: the library's own moving average lets rare large activations saturate."""
    if not set(known) <= {"min", "max", "num_samples"}:
        raise ValueError(f"the recipe's algorithm calibrates {sorted(known)}; only ranges are known here")
    widened = {"min": np.minimum(known["min"], seen["min"]), "max": np.maximum(known["max"], seen["max"])}
    return {**seen, **widened}


def _kept(model: bytes, patterns: Sequence[str]) -> list[str]:
    from tftoolkit.export.convert import flatbuffer  # needs ai-edge-litert

    layers = flatbuffer.layers(model)
    kept = []
    for pattern in patterns:
        found = [output for output, names in layers if any(re.search(pattern, name) for name in names)]
        if not found:
            names = [name for _, every in layers for name in every][:MAX_NAMES]
            raise ValueError(f"keep_float: no op or weight is found by {pattern!r}; there are {', '.join(names)}")
        kept += found
    return kept


def _library() -> tuple[Any, Any, Any, Any]:
    try:
        from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe
    except ImportError as error:
        raise ImportError(
            "selective quantisation needs ai-edge-quantizer, which is not installed: pip install 'tftoolkit[export]'"
        ) from error
    return calibrator, qtyping, quantizer, recipe
