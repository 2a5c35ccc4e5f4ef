"""Runs a file in its own runtime: TensorFlow for a SavedModel, LiteRT for a .tflite."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tftoolkit.export.report import ExportError
from tftoolkit.export.staging import quiet

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Name, shape (None where a dimension is free; None for an unknown rank) and dtype of an input or output."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: np.dtype

    def accepts(self, shape: tuple[int | None, ...] | None) -> bool:
        """Whether nothing known about the two shapes contradicts."""
        if self.shape is None or shape is None:
            return True
        pairs = zip(self.shape, shape, strict=False)
        return len(self.shape) == len(shape) and all(a is None or b is None or a == b for a, b in pairs)

    def __str__(self) -> str:
        dimensions = "?" if self.shape is None else ", ".join("None" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype.name}[{dimensions}]"


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of one callable, in the order of the file (TensorFlow sorts them by name)."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def dynamic(self) -> bool:
        """Whether an input has a free dimension."""
        return any(tensor.shape is None or None in tensor.shape for tensor in self.inputs)


class Runtime(Protocol):
    """Something that runs the signatures of one file."""

    signatures: dict[str, Signature]

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """One call; raises ValueError where names, shapes or dtypes are not the signature's."""


def default_signature(signatures: Mapping[str, Signature]) -> str:
    """TensorFlow's ``serving_default`` where there is one, else the first."""
    return "serving_default" if "serving_default" in signatures else next(iter(signatures))


def checked_inputs(name: str, signature: Signature, inputs: Mapping[str, Any]) -> Arrays:
    """The inputs as arrays, or a ValueError that says what the signature expects."""
    expected = ", ".join(map(str, signature.inputs))
    if not isinstance(inputs, Mapping):
        raise ValueError(
            f"inputs of signature {name!r} must be a dict of named arrays, got {type(inputs).__name__}; "
            f"expected {expected}"
        )
    if set(inputs) != {tensor.name for tensor in signature.inputs}:
        raise ValueError(f"inputs of signature {name!r} are named {sorted(inputs)}; expected exactly {expected}")
    arrays = {tensor.name: np.asarray(inputs[tensor.name]) for tensor in signature.inputs}
    for tensor in signature.inputs:
        array = arrays[tensor.name]
        if tensor.dtype == object and array.dtype.kind in "SU":
            array = arrays[tensor.name] = array.astype(object)
        if array.dtype != tensor.dtype:
            raise ValueError(f"input {tensor.name!r} of signature {name!r} is {array.dtype}; expected {tensor}")
        if not tensor.accepts(array.shape):
            raise ValueError(f"input {tensor.name!r} of signature {name!r} has shape {array.shape}; expected {tensor}")
    return arrays


class SavedModelRuntime:
    """A SavedModel in this process's TensorFlow, on the CPU: GPUs multiply matrices in TF32, which hides errors."""

    def __init__(self, path: str | os.PathLike[str]):
        with tf.device("CPU:0"):
            self._loaded = tf.saved_model.load(str(path))  # kept: its variables live as long as it does
        if not self._loaded.signatures:
            raise ExportError("structure", f"{path} has no signature; save it with signatures={{name: function}}")
        self._functions = dict(self._loaded.signatures)
        self.signatures = {
            name: Signature(_tensors(function.structured_input_signature[1]), _tensors(function.structured_outputs))
            for name, function in self._functions.items()
        }

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        arrays = checked_inputs(signature, self.signatures[signature], inputs)
        with tf.device("CPU:0"):
            outputs = self._functions[signature](**{name: tf.constant(array) for name, array in arrays.items()})
        return {name: np.asarray(value) for name, value in outputs.items()}

    @property
    def variables(self) -> list[tf.Variable]:
        """Every variable that a signature reads."""
        found = {id(v): v for function in self._functions.values() for v in function.variables}
        return list(found.values())

    @contextlib.contextmanager
    def variables_changed(self, change: Callable[[np.ndarray], np.ndarray]) -> Iterator[None]:
        """Floating variables start as ``change(array)``; afterwards all are what they were before.

        The variables are this runtime's own copies.
        """
        before = [(variable, variable.numpy()) for variable in self.variables]
        try:
            for variable, value in before:
                if variable.dtype.is_floating:
                    variable.assign(change(value))
            yield
        finally:
            for variable, value in before:
                variable.assign(value)


def _tensors(specs: Mapping[str, tf.TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name, None if spec.shape.rank is None else tuple(spec.shape.as_list()), np.dtype(spec.dtype.as_numpy_dtype)
        )
        for name, spec in sorted(specs.items())
    )


class LiteRuntime:
    """A .tflite file in ai-edge-litert's interpreter; free dimensions are resized by every call."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ImportError(
                "TFLite files are proven in ai-edge-litert, which is not installed: pip install 'tftoolkit[export]'"
            ) from error
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            with quiet():
                self._interpreter = Interpreter(str(path), num_threads=threads)
                self._interpreter.allocate_tensors()
                listed = self._interpreter.get_signature_list()
                self._runners = {name: self._interpreter.get_signature_runner(name) for name in listed}
        except (RuntimeError, ValueError) as error:
            raise ExportError("structure", f"LiteRT cannot open {path}: {error}") from error
        if not listed:
            raise ExportError("structure", f"{path} has no signature")
        self.signatures = {
            name: Signature(
                _details(listed[name]["inputs"], runner.get_input_details()),
                _details(listed[name]["outputs"], runner.get_output_details()),
            )
            for name, runner in self._runners.items()
        }

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        arrays = checked_inputs(signature, self.signatures[signature], inputs)
        return dict(self._runners[signature](**arrays))


def _details(names: list[str], details: Mapping[str, Mapping[str, Any]]) -> tuple[Tensor, ...]:
    def shape(detail: Mapping[str, Any]) -> tuple[int | None, ...] | None:
        # shape_signature is empty for scalars and for tensors of unknown rank alike.
        return tuple(None if size < 0 else int(size) for size in detail["shape_signature"]) or None

    return tuple(Tensor(name, shape(details[name]), np.dtype(details[name]["dtype"])) for name in names)
