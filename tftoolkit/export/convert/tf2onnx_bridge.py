"""From a decomposed SavedModel to an ONNX model."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from tftoolkit.export import saved_models
from tftoolkit.export.convert import onnx_repairs
from tftoolkit.export.report import ExportError
from tftoolkit.export.runtimes.runtime import Signature
from tftoolkit.export.staging import quiet

OPSET = 18
HANDLES = {tf.resource, tf.variant}  # of variables and tables
# Domains whose ops onnxruntime brings along.
DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}


def convert(saved_model: Path, name: str, signature: Signature) -> bytes:
    """One signature as an ONNX model whose graph bears the signature's name. ``saved_model`` is changed.

    Raises ExportError where the converter fails or writes ops that ONNX does not have (it logs them and goes on).
    """
    tf2onnx, onnx = _libraries()
    _check_names(name, signature)
    _without_jit(saved_model)
    loaded = tf.saved_model.load(str(saved_model))
    function = loaded.signatures[name]
    wrapped, specs = _positional(function, signature)
    errors = _Errors()
    with quiet(), _logged(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            model, _ = tf2onnx.convert.from_function(
                wrapped, specs, opset=OPSET, custom_op_handlers=onnx_repairs.handlers()
            )
        except Exception as error:  # it raises many kinds
            reason = f"tf2onnx: {type(error).__name__}: {_readable(str(error))}"
            raise ExportError("convert", reason, signature=name) from error
    _with_constants(onnx, model.graph, wrapped.get_concrete_function(*specs))
    _only_known_ops(onnx, model, name, errors.lines)
    _in_order(model.graph, signature, name)
    model.graph.name = name
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError and InferenceError have no common base
        reason = f"ONNX's checker: {str(error).strip()[:500]}"
        if "bfloat16" in reason:
            reason += (
                "; compute in float32; of a mixed_bfloat16 model make one with the policy float32, and give it the "
                "weights of this one (set_weights)"
            )
        raise ExportError("structure", reason, signature=name) from error
    return model.SerializeToString(deterministic=True)


def _check_names(name: str, signature: Signature) -> None:
    """Raises ExportError where an input and an output have one name."""
    outputs = {tensor.name for tensor in signature.outputs}
    for tensor in signature.inputs:
        if tensor.name in outputs:
            reason = (
                f"an input and an output are both named {tensor.name!r}; in ONNX all values of a graph have names of "
                f"their own: give signatures in which one is called otherwise ({tensor.name}_out)"
            )
            raise ExportError("convert", reason, signature=name, tensor=tensor.name)


def _without_jit(saved_model: Path) -> None:
    """Functions with jit_compile=True become ordinary ones: tf2onnx takes the others for unknown ops."""
    proto = saved_models.read(saved_model)
    for meta in proto.meta_graphs:
        for marked in (*saved_models.nodes(meta.graph_def), *meta.graph_def.library.function):
            marked.attr.pop("_XlaMustCompile", None)
    (saved_model / "saved_model.pb").write_bytes(proto.SerializeToString(deterministic=True))


def _positional(function: Any, signature: Signature) -> tuple[Any, list[tf.TensorSpec]]:
    specs = function.structured_input_signature[1]
    ordered = [tf.TensorSpec(specs[t.name].shape, specs[t.name].dtype, t.name) for t in signature.inputs]
    names = [tensor.name for tensor in signature.inputs]

    def call(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        return function(**dict(zip(names, values, strict=True)))

    return tf.function(call, autograph=False), ordered


def _with_constants(onnx: Any, graph: Any, function: Any) -> None:
    """Constants from outside the function, of which tf2onnx makes inputs, get their values back."""
    values = {inner.name: outer for outer, inner in function.graph.captures if outer.dtype not in HANDLES}
    for entry in [entry for entry in graph.input if entry.name in values]:
        graph.initializer.append(onnx.numpy_helper.from_array(values[entry.name].numpy(), entry.name))
        graph.input.remove(entry)


def _readable(text: str) -> str:
    """The first line without Python's addresses of functions."""
    return re.sub(r" *\(fct=<.*?>+\)", "", text.strip().split("\n")[0])[:500]


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def _logged(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger("tf2onnx")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _only_known_ops(onnx: Any, model: Any, signature: str, errors: list[str]) -> None:
    unknown = set()
    for node in _nodes(model.graph):
        known = node.domain in DOMAINS and (node.domain == "ai.onnx.ml" or onnx.defs.has(node.op_type))
        if not known:
            unknown.add(f"{node.domain}:{node.op_type}" if node.domain else node.op_type)
    if unknown:
        logged = f" (tf2onnx: {_readable(errors[0])[:200]})" if errors else ""
        raise ExportError(
            "convert",
            f"ONNX has no op for {', '.join(sorted(unknown))}{logged}; rewrite that part of the model with other ops",
            signature=signature,
        )


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _in_order(graph: Any, signature: Signature, name: str) -> None:
    """Inputs and outputs under the signature's names and in its order; unused inputs come back."""
    for side, wanted in (("input", signature.inputs), ("output", signature.outputs)):
        values = getattr(graph, side)
        found = {re.sub(r":0$", "", value.name): value for value in values}
        names = [tensor.name for tensor in wanted]
        if set(found) != set(names):
            reason = f"ONNX {side}s are {sorted(found)}; the model has {names}"
            if set(found) > set(names):
                reason += ". tf2onnx made inputs of constants: make them variables"
            raise ExportError("structure", reason, signature=name)
        ordered = [type(found[tensor.name])() for tensor in wanted]
        for copy, tensor in zip(ordered, wanted, strict=True):
            copy.CopyFrom(found[tensor.name])
        del values[:]
        values.extend(ordered)


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import tf2onnx.convert
    except ImportError as error:
        raise ImportError(
            f"ONNX export needs {error.name}, which is not installed: pip install 'tftoolkit[onnx]'"
        ) from error
    return tf2onnx, onnx
