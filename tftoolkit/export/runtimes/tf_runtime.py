"""Runs a SavedModel in this process's TensorFlow."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import cancellation

from tftoolkit.export import saved_models
from tftoolkit.export.report import ExportError
from tftoolkit.export.runtimes import rounding
from tftoolkit.export.runtimes.runtime import Arrays, Signature, Tensor, checked_inputs, strings


class SavedModelRuntime:
    """A SavedModel in this process's TensorFlow, on the CPU: GPUs multiply matrices in TF32, which hides errors."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with tf.device("CPU:0"):
            self._loaded = tf.saved_model.load(str(path))  # kept: its variables live as long as it does
        if not self._loaded.signatures:
            raise ExportError("structure", f"{path} has no signature; save it with signatures={{name: function}}")
        self._functions = dict(self._loaded.signatures)
        self.signatures = {
            name: Signature(_tensors(function.structured_input_signature[1]), _tensors(function.structured_outputs))
            for name, function in self._functions.items()
        }

    def only(self, signature: str | None) -> "SavedModelRuntime":
        """Itself, reduced to one signature. Raises ValueError where that is not there, or not one when None."""
        if signature is None and len(self.signatures) > 1:
            raise ValueError(f"the file holds one signature, the model has {sorted(self.signatures)}: give signature=")
        chosen = next(iter(self.signatures)) if signature is None else signature
        if chosen not in self.signatures:
            raise ValueError(f"signature={chosen!r} is none of the model's, {sorted(self.signatures)}")
        self.signatures = {chosen: self.signatures[chosen]}
        self._functions = {chosen: self._functions[chosen]}
        return self

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float | None = None) -> Arrays:
        """One call; after so many seconds a loop in it is cancelled, and TensorFlow raises its CancelledError."""
        arrays = checked_inputs(signature, self.signatures[signature], inputs)
        with tf.device("CPU:0"), _cancelled_after(seconds):
            outputs = self._functions[signature](**{name: tf.constant(array) for name, array in arrays.items()})
        return {name: strings(np.asarray(value)) for name, value in outputs.items()}

    def op_types(self, signature: str) -> set[str]:
        """The types of all ops that one signature may run."""
        return {node.op for node in saved_models.nodes(self._functions[signature].graph.as_graph_def())}

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

    def constants_beyond(self, limit: float) -> list[float]:
        """The finite constants of larger magnitude, the largest of each tensor."""
        arrays = [tf.make_ndarray(tensor).astype(np.float64) for tensor in _constants(saved_models.read(self.path))]
        largest = [float(array.flat[np.argmax(np.abs(array))]) for array in arrays if array.size]
        return sorted({value for value in largest if limit < abs(value) < np.inf})

    def has_infinite_constants(self) -> bool:
        tensors = _constants(saved_models.read(self.path))
        return any(np.isinf(tf.make_ndarray(tensor).astype(np.float64)).any() for tensor in tensors)

    def changed(
        self, constants: Callable[[np.ndarray], np.ndarray] | None = None, functions: float | None = None
    ) -> "SavedModelRuntime":
        """A copy with ``constants(array)`` for floating constants, and elementary functions ``functions`` off.

        Constants that are the limits of a range stay, since they decide over shapes. ``functions`` is relative; see
        ``rounding``. It is itself where there is nothing to change.
        """
        proto = saved_models.read(self.path)
        tensors = _constants(proto) if constants is not None else []
        asserts = saved_models.without_assertions(proto)  # numbers that were moved may be out of their range
        inexact = functions is not None and rounding.has_functions(self.path)
        if not tensors and not inexact and not asserts:
            return self
        for tensor in tensors:
            assert constants is not None
            tensor.CopyFrom(tf.make_tensor_proto(constants(tf.make_ndarray(tensor))))
        with tempfile.TemporaryDirectory() as folder:
            for part in self.path.iterdir():
                if part.name not in ("saved_model.pb", "fingerprint.pb"):
                    (Path(folder) / part.name).symlink_to(part.absolute())
            (Path(folder) / "saved_model.pb").write_bytes(proto.SerializeToString())
            if inexact:
                assert functions is not None
                rounding.perturb_functions(Path(folder), functions)
            copy = SavedModelRuntime(folder)
        copy._functions = {name: copy._functions[name] for name in self.signatures}
        copy.signatures = self.signatures
        return copy


@contextlib.contextmanager
def _cancelled_after(seconds: float | None) -> Iterator[None]:
    if seconds is None:
        yield
        return
    manager = cancellation.CancellationManager()
    timer = threading.Timer(seconds, manager.start_cancel)
    timer.start()
    try:
        with cancellation.CancellationManagerContext(manager):
            yield
    finally:
        timer.cancel()


def _constants(proto: Any) -> list[Any]:
    """The floating constants of a SavedModel, without the limits of ranges."""
    graphs = [
        graph
        for meta in proto.meta_graphs
        for graph in (meta.graph_def.node, *(function.node_def for function in meta.graph_def.library.function))
    ]
    return [node.attr["value"].tensor for graph in graphs for node in _constant_nodes(graph)]


def _constant_nodes(graph: Iterable[Any]) -> list[Any]:
    limits = {name.split(":")[0] for node in graph if node.op in ("Range", "LinSpace") for name in node.input}
    constants = [node for node in graph if node.op == "Const" and node.name not in limits]
    return [node for node in constants if tf.as_dtype(node.attr["dtype"].type).is_floating]


def _tensors(specs: Mapping[str, tf.TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name, None if spec.shape.rank is None else tuple(spec.shape.as_list()), np.dtype(spec.dtype.as_numpy_dtype)
        )
        for name, spec in sorted(specs.items())
    )
