"""A whole training step in a .tflite file of builtin ops: ``trainable_tflite``."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.export import saved_models
from tftoolkit.export.convert import builtin_gradients, decompose, lite_repairs
from tftoolkit.export.convert.convert import convert
from tftoolkit.export.convert.formats import FLOAT32
from tftoolkit.export.convert.trace import trace
from tftoolkit.export.exporters import write_proven
from tftoolkit.export.proof import golden
from tftoolkit.export.proof.bounds import COARSE, golden_cases
from tftoolkit.export.proof.opened import open_saved_model
from tftoolkit.export.proof.parity import GoldenCase
from tftoolkit.export.proof.proof import Proof, prove
from tftoolkit.export.report import ExportError, ExportReport
from tftoolkit.export.runtimes.made_up import NOT_FINITE, cases
from tftoolkit.export.runtimes.runtime import Arrays, LiteRuntime, Signature, require_litert
from tftoolkit.export.runtimes.samples import Case
from tftoolkit.export.runtimes.tf_runtime import SavedModelRuntime
from tftoolkit.export.staging import stage, workspace
from tftoolkit.trainers import Step

STEPS = 50  # of the proof
TOLERANCE = 1e-5  # of losses; relative for those above 1
TRAIN, INFER, GET, SET = "train", "infer", "get_weights", "set_weights"
_NARROW = {tf.int64: tf.int32}  # LiteRT in a browser takes no int64
_STORED = (tf.float32, tf.int32, tf.int64)


def trainable_tflite(
    step: Step,
    path: str | os.PathLike[str],
    *,
    batches: Iterable[Mapping[str, Any]],
    infer: tuple[Callable[..., Any], Sequence[tf.TensorSpec]],
    overwrite: bool = False,
) -> ExportReport:
    """Writes a .tflite file that trains on the device and follows TensorFlow's losses, or writes nothing.

    The file has four signatures of builtin ops only. ``train``: one call of the step on one batch, with the step's
    metrics as outputs. ``infer``: the model with the current weights. ``get_weights`` and ``set_weights``: everything
    that training changes or reads (weights, optimizer slots, counters), by the names of ``step.named_variables()``
    with ``_`` for ``/``; what one returns, the other takes (it returns how many, as ``count``), and training goes on
    exactly. The file starts with the step's present values.

    Nothing in the model has to be changed: gradient ops that TFLite lacks are replaced in the traced graph (see
    ``tftoolkit.export.convert.builtin_gradients``). The step's key is zero in every call, and random ops are
    refused, as TFLite cannot repeat TensorFlow's numbers: leave dropout out.

    Args:
      step: what ``trainers.Trainer`` would run; its metrics hold ``loss``. Its model is built.
      path: the .tflite file to make.
      batches: real batches (dicts of named arrays) of one shape, which is the shape that the file trains on. The proof
        trains 50 steps on them, over and over where they are fewer. int64 becomes int32, which browsers have.
      infer: ``(function, [tf.TensorSpec(shape, dtype, name), ...])``, as in ``saved_model``.
      overwrite: replace what exists at ``path``.

    Raises ExportError when a stage fails: naming the ops that have no substitute, or the loss that is off by more than
    1e-5 (relative to losses above 1). FileExistsError, TypeError, ValueError for unusable arguments.
    """
    if not isinstance(step, Step):
        raise TypeError(f"step must be a trainers.Step, got {type(step).__name__}: it trains on one batch when called")
    require_litert()
    examples = _checked(batches)
    state = _State(step)
    name = Path(path).name
    with workspace(path, overwrite) as folder:
        with stage("trace", name):
            signatures = {TRAIN: _train(step, examples[0]), INFER: infer, GET: state.get(), SET: state.set()}
            native = trace(step, signatures, folder / "native")
        decomposed = decompose.decomposed_copy(native, folder / "decomposed", name)
        saved_models.substitute(decomposed, builtin_gradients.substitute)
        saved_models.substitute(decomposed, lite_repairs.substitute)
        original = open_saved_model(native)
        built = folder / "result.tflite"
        with stage("convert", name):
            built.write_bytes(convert(decomposed, original.signatures))
        real = {INFER: _real_inputs(original.signatures[INFER], examples[0])}
        proof = _proven(built, original, _cases(original, real, state, examples), real, name)
        with stage("weights", name):
            _check_weights(LiteRuntime(built), state.values(), examples[0])
        write_proven(built, folder, path, proof, overwrite)
    return proof.report


class _State:
    """Every variable of a step, as inputs and outputs of signatures."""

    def __init__(self, step: Step) -> None:
        self._variables = {name.replace("/", "_"): variable for name, variable in step.named_variables().items()}
        if len(self._variables) < len(step.named_variables()):
            raise ValueError("two variables of the step have one name once / is written as _; rename an attribute")
        for name, variable in self._variables.items():
            if variable.dtype not in _STORED:
                raise ValueError(f"{name} is a {variable.dtype.name} variable; on the device they are float32 or int")

    def get(self) -> Any:
        def get_weights() -> dict[str, tf.Tensor]:
            return {name: tf.cast(value, _narrow(value.dtype)) for name, value in self._variables.items()}

        return tf.function(get_weights, autograph=False).get_concrete_function()

    def set(self) -> tuple[Callable[..., Any], list[tf.TensorSpec]]:
        def set_weights(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            for variable, value in zip(self._variables.values(), values, strict=True):
                variable.assign(tf.cast(value, variable.dtype))
            return {"count": tf.constant(len(values))}

        specs = [tf.TensorSpec(v.shape, _narrow(v.dtype), name) for name, v in self._variables.items()]
        return set_weights, specs

    def values(self) -> Arrays:
        """Copies, as the file takes and returns them."""
        return {
            name: np.array(variable.numpy(), _narrow(variable.dtype).as_numpy_dtype)
            for name, variable in self._variables.items()
        }


def _narrow(dtype: tf.DType) -> tf.DType:
    return _NARROW.get(dtype, dtype)


def _checked(batches: Iterable[Mapping[str, Any]]) -> list[Arrays]:
    """The first batches, with the integers that the file takes."""
    found: list[Arrays] = []
    for position, batch in enumerate(batches):
        if not isinstance(batch, Mapping) or not batch:
            raise ValueError(f"batches, item {position} is {type(batch).__name__}; expected a dict of named arrays")
        arrays = {}
        for name, value in sorted(batch.items()):
            array = np.asarray(value)
            if array.dtype.kind not in "fiub":
                raise ValueError(f"batches, item {position}: {name!r} is {array.dtype}; expected numbers")
            narrow = _narrow(tf.as_dtype(array.dtype)).as_numpy_dtype
            if not np.array_equal(array.astype(narrow), array, equal_nan=array.dtype.kind == "f"):
                raise ValueError(f"batches, item {position}: {name!r} holds numbers beyond int32")
            arrays[name] = array.astype(narrow)
        shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        first = {name: (array.shape, array.dtype) for name, array in (found or [arrays])[0].items()}
        if shapes != first:
            raise ValueError(f"batches, item {position} is {shapes}, the first {first}: a file trains on one shape")
        found.append(arrays)
        if len(found) == STEPS:
            break
    if not found:
        raise ValueError("batches is empty: give at least one real batch")
    return found


def _train(step: Step, batch: Arrays) -> tuple[Callable[..., Any], list[tf.TensorSpec]]:
    def train(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        metrics = step(dict(zip(batch, values, strict=True)), tf.zeros([2], tf.int32))
        if not isinstance(metrics, Mapping) or "loss" not in metrics:
            raise ValueError(f"the step must return a dict of metrics with 'loss', got {metrics}")
        return {name: tf.cast(value, _narrow(value.dtype)) for name, value in metrics.items()}

    return train, [tf.TensorSpec(array.shape, array.dtype, name) for name, array in batch.items()]


def _real_inputs(infer: Signature, batch: Arrays) -> list[Arrays]:
    """As much of the batch as ``infer`` takes; nothing where it takes other inputs."""
    found = {}
    for tensor in infer.inputs:
        array = batch.get(tensor.name, np.zeros(()))
        found[tensor.name] = array[: tensor.shape[0]] if tensor.shape and array.ndim else array
        if found[tensor.name].dtype != tensor.dtype or not tensor.accepts(found[tensor.name].shape):
            return []
    return [found]


def _cases(
    model: SavedModelRuntime, real: Mapping[str, list[Arrays]], state: _State, batches: list[Arrays]
) -> list[Case]:
    """One sequence of calls: the state goes from each to the next."""
    inferred = cases({INFER: model.signatures[INFER]}, real)
    read = Case("real", GET, {})
    trained = [Case("real", TRAIN, batches[number % len(batches)]) for number in range(STEPS)]
    return [read, *inferred, *trained, read, *inferred, Case("real", SET, state.values()), read]


def _bounded(found: Sequence[GoldenCase]) -> list[GoldenCase]:
    """With the promised tolerance for losses, and added to what the numbers' format may cost for everything else.

    A weight that has no influence gets gradients made of nothing but roundings, and Adam makes full steps of those:
    hence the factor on what was measured in a few draws.
    """
    bounded = []
    for item in found:
        bounds = {}
        for name, bound in item.bounds.items():
            magnitude = np.max(np.abs(item.outputs[name]), initial=1.0)
            tolerance = TOLERANCE * float(magnitude if np.isfinite(magnitude) else 1.0)
            promised = (item.case.signature, name) == (TRAIN, "loss")
            wide = None if bound is None else tolerance + COARSE * bound
            # That of an integer output is a fraction of its elements.
            distance = item.outputs[name].dtype.kind == "f" and item.case.kind not in NOT_FINITE
            bounds[name] = tolerance if promised else wide if distance else bound
        bounded.append(dataclasses.replace(item, bounds=bounds))
    return bounded


def _proven(
    built: Path, model: SavedModelRuntime, sequence: Sequence[Case], real: Mapping[str, list[Arrays]], name: str
) -> Proof:
    try:
        proof = prove(built, model, real, None, None, None, name, _bounded(golden_cases(model, sequence, FLOAT32)))
    except ExportError as error:
        if (error.stage, error.signature) != ("parity", TRAIN):
            raise
        hint = "Training that amplifies roundings (a large learning rate, losses that jump) cannot be proven either"
        raise ExportError("parity", f"{error.reason}. {hint}", signature=TRAIN, tensor=error.tensor) from error
    return dataclasses.replace(proof, cases=_stored(proof.cases))


def _stored(sequence: Sequence[GoldenCase]) -> list[GoldenCase]:
    """The start of the sequence, as far as the space for golden inputs goes: later calls depend on all before them."""
    room = golden.MAX_REAL_BYTES
    found = []
    for item in sequence:
        room -= sum(array.nbytes for array in (*item.case.inputs.values(), *item.outputs.values()))
        if room < 0:
            break
        found.append(item)
    return found


def _check_weights(file: LiteRuntime, start: Arrays, batch: Arrays) -> None:
    """Bit for bit: the start, what goes in and comes out again, and that training goes on from it.

    Raises ExportError.
    """
    _same("the file starts with other values than the step has", file.run(GET, {}), start)
    file.run(TRAIN, batch)
    once = file.run(GET, {})
    if all(np.array_equal(once[name], start[name], equal_nan=True) for name in start):
        raise ExportError("parity", "a step of training changes nothing: does the step apply its update?")
    file.run(SET, start)
    _same("set_weights, then get_weights", file.run(GET, {}), start)
    file.run(TRAIN, batch)
    _same("a step from the same weights again", file.run(GET, {}), once)


def _same(what: str, found: Arrays, expected: Arrays) -> None:
    for name, value in expected.items():
        if not np.array_equal(found[name], value, equal_nan=True):
            raise ExportError("parity", f"{what}: not the same bits", signature=GET, tensor=name)
