"""Runs a .tflite file in LiteRT and an .onnx file in onnxruntime. Works where TensorFlow is not installed."""

import dataclasses
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tftoolkit.export.report import ExportError, first_line
from tftoolkit.export.runtimes import delegate
from tftoolkit.export.staging import quiet

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Name, shape (None where a dimension is free; None for an unknown rank) and dtype of an input or output.

    ``stored`` describes the integers of a quantised input or output; ``dtype`` is then what they stand for, and what
    our runtimes take and return.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: np.dtype
    stored: str | None = None

    def accepts(self, shape: tuple[int | None, ...] | None) -> bool:
        """Whether nothing known about the two shapes contradicts."""
        if self.shape is None or shape is None:
            return True
        pairs = zip(self.shape, shape, strict=False)
        return len(self.shape) == len(shape) and all(a is None or b is None or a == b for a, b in pairs)

    def __str__(self) -> str:
        dimensions = "?" if self.shape is None else ", ".join("None" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype.name}[{dimensions}]{f' as {self.stored}' if self.stored else ''}"


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
    """TensorFlow's ``serving_default`` where there is one, ``infer`` of a file that trains, else the first."""
    return next((name for name in ("serving_default", "infer") if name in signatures), next(iter(signatures)))


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
        if tensor.dtype == object:
            array = arrays[tensor.name] = strings(array)
        if array.dtype != tensor.dtype:
            raise ValueError(f"input {tensor.name!r} of signature {name!r} is {array.dtype}; expected {tensor}")
        if not tensor.accepts(array.shape):
            raise ValueError(f"input {tensor.name!r} of signature {name!r} has shape {array.shape}; expected {tensor}")
    return arrays


def strings(array: np.ndarray) -> np.ndarray:
    """Strings as TensorFlow has them, objects that are bytes; other arrays as they are."""
    if array.dtype.kind not in "OSU":
        return array
    found = np.empty(array.shape, object)
    for index, item in np.ndenumerate(array):
        found[index] = item.encode() if isinstance(item, str) else item
    return found


def require_litert() -> None:
    """Raises ImportError, with what to install, where TFLite files cannot be run: before minutes of work, not after."""
    try:
        import ai_edge_litert.interpreter  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "TFLite files are proven in ai-edge-litert, which is not installed: pip install 'tftoolkit[export]'"
        ) from error


class LiteRuntime:
    """A .tflite file in ai-edge-litert's interpreter; free dimensions are resized by every call."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1):
        require_litert()
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.interpreter import Interpreter

        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            with quiet():
                delegates = [delegate.load(Path(path))] if delegate.folder_of(Path(path)).is_dir() else None
                self._interpreter = Interpreter(str(path), num_threads=threads, experimental_delegates=delegates)
                self._interpreter.allocate_tensors()
                listed = self._interpreter.get_signature_list()
                self._runners = {name: self._interpreter.get_signature_runner(name) for name in listed}
        except (RuntimeError, ValueError) as error:
            raise ExportError("structure", f"LiteRT cannot open {path}: {error}") from error
        if not listed:
            raise ExportError("structure", f"{path} has no signature")
        ranked = _ranked(schema.Model.GetRootAs(Path(path).read_bytes()))
        self.signatures = {
            name: Signature(
                _details(listed[name]["inputs"], runner.get_input_details(), ranked[name]),
                _details(listed[name]["outputs"], runner.get_output_details(), ranked[name]),
            )
            for name, runner in self._runners.items()
        }

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        arrays = checked_inputs(signature, self.signatures[signature], inputs)
        runner = self._runners[signature]
        details = runner.get_input_details()
        outputs = runner(**{name: _to_integers(array, details[name]) for name, array in arrays.items()})
        details = runner.get_output_details()
        return {name: _to_numbers(array, details[name]) for name, array in outputs.items()}


def _ranked(model: Any) -> dict[str, set[str]]:
    """By signature the inputs and outputs whose rank is known, which the interpreter does not tell of scalars."""
    found = {}
    for definition in map(model.SignatureDefs, range(model.SignatureDefsLength())):
        graph = model.Subgraphs(definition.SubgraphIndex())
        places = [
            *map(definition.Inputs, range(definition.InputsLength())),
            *map(definition.Outputs, range(definition.OutputsLength())),
        ]
        names = {place.Name().decode() for place in places if graph.Tensors(place.TensorIndex()).HasRank()}
        found[definition.SignatureKey().decode()] = names
    return found


def _details(names: list[str], details: Mapping[str, Mapping[str, Any]], ranked: Container[str]) -> tuple[Tensor, ...]:
    return tuple(_tensor(name, details[name], name in ranked) for name in names)


def _tensor(name: str, detail: Mapping[str, Any], ranked: bool) -> Tensor:
    # shape_signature is empty for scalars and for tensors of unknown rank alike.
    shape = tuple(None if size < 0 else int(size) for size in detail["shape_signature"]) or (() if ranked else None)
    if not _is_quantised(detail):
        dtype = np.dtype(detail["dtype"])
        return Tensor(name, shape, np.dtype(object) if dtype.kind == "S" else dtype)  # strings, as TensorFlow has them
    scale, zero_point = detail["quantization"]
    stored = f"{np.dtype(detail['dtype']).name} (scale {scale:.6g}, zero point {zero_point})"
    return Tensor(name, shape, np.dtype(np.float32), stored)


def _is_quantised(detail: Mapping[str, Any]) -> bool:
    return np.dtype(detail["dtype"]).kind in "iu" and detail["quantization"][0] != 0.0


def _to_integers(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    if array.dtype == object and not array.ndim:
        return np.asarray(array, "S")  # of a single string the interpreter takes no object
    if not _is_quantised(detail):
        return array
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    array = np.nan_to_num(array, nan=0.0)  # integers have none
    return np.clip(np.round(array / scale) + zero_point, limits.min, limits.max).astype(detail["dtype"])


def _to_numbers(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    if not _is_quantised(detail):
        return strings(array)
    scale, zero_point = detail["quantization"]
    return ((array.astype(np.float64) - zero_point) * scale).astype(np.float32)


_ONNX_TYPES: dict[str, Any] = {
    "float": np.float32, "double": np.float64, "float16": np.float16, "bool": np.bool_, "string": np.object_,
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}").type for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


class OnnxRuntime:
    """An .onnx file in onnxruntime on the CPU. ONNX has no signatures: the graph's name is taken for the one's."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "ONNX files are proven in onnxruntime, which is not installed: pip install 'tftoolkit[onnx]'"
            ) from error
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what fails is raised
        try:
            self._session = onnxruntime.InferenceSession(
                Path(path).read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's classes have no common base of their own
            raise ExportError("structure", f"onnxruntime cannot open {path}: {first_line(error)}") from error
        signature = Signature(
            tuple(map(_onnx_tensor, self._session.get_inputs())), tuple(map(_onnx_tensor, self._session.get_outputs()))
        )
        self.signatures = {self._session.get_modelmeta().graph_name: signature}

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        described = self.signatures[signature]
        arrays = checked_inputs(signature, described, inputs)
        texts = {tensor.name for tensor in described.inputs if tensor.dtype == object}
        feed = {name: _decoded(array) if name in texts else array for name, array in arrays.items()}
        outputs = self._session.run(None, feed)
        pairs = zip(described.outputs, outputs, strict=True)
        return {tensor.name: strings(np.asarray(value, tensor.dtype)) for tensor, value in pairs}


def _decoded(array: np.ndarray) -> np.ndarray:
    """onnxruntime takes text."""
    found = np.empty(array.shape, object)
    for index, item in np.ndenumerate(array):
        found[index] = item.decode()
    return found


def _onnx_tensor(value: Any) -> Tensor:
    element = value.type.removeprefix("tensor(").removesuffix(")")
    if element not in _ONNX_TYPES:
        raise ExportError("structure", f"is of type {value.type}, which cannot be proven", tensor=value.name)
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return Tensor(value.name, shape, np.dtype(_ONNX_TYPES[element]))


def open_lite(path: Path, threads: int) -> Runtime:
    """A .tflite or .onnx file in its runtime."""
    return OnnxRuntime(path, threads) if path.suffix == ".onnx" else LiteRuntime(path, threads)
