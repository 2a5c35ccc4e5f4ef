"""A .tflite file run whole or in parts, tensor by tensor."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as lite
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tftoolkit.export.runtimes.runtime import Arrays
from tftoolkit.export.staging import quiet

Values = dict[int, np.ndarray]  # by tensor index


class LiteGraph:
    """The subgraph of a signature in a .tflite file, to be run whole or in parts."""

    def __init__(self, content: bytes, signature: str) -> None:
        self._model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
        definition = next(each for each in self._model.signatureDefs if each.signatureKey.decode() == signature)
        self._names = {item.name.decode(): item.tensorIndex for item in definition.inputs}
        self.graph = self._model.subgraphs[definition.subgraphIndex]
        self._made = {index for op in self.graph.operators for index in op.outputs} | set(self.graph.inputs)

    def name(self, index: int) -> str:
        return self.graph.tensors[index].name.decode()

    def scale(self, index: int) -> float | None:
        """None where numbers are stored as such, and for a tensor that isn't there."""
        found = self.graph.tensors[index].quantization if index >= 0 else None
        return None if found is None or found.scale is None else float(found.scale[0])

    def kind(self, op: Any) -> str:
        return flatbuffer_utils.opcode_to_name(self._model, op.opcodeIndex)

    def is_conversion(self, op: Any) -> bool:
        return self.kind(op) in ("QUANTIZE", "DEQUANTIZE")

    def to_stored(self, index: int, numbers: np.ndarray) -> np.ndarray:
        scale = self.scale(index)
        if scale is None:
            return numbers
        limits = np.iinfo(np.int16 if self.graph.tensors[index].type == schema.TensorType.INT16 else np.int8)
        steps = np.round(numbers / scale) + self.graph.tensors[index].quantization.zeroPoint[0]
        return np.clip(steps, limits.min, limits.max).astype(limits.dtype)

    def to_numbers(self, index: int, stored: np.ndarray) -> np.ndarray:
        scale = self.scale(index)
        if scale is None:
            return stored
        zero = self.graph.tensors[index].quantization.zeroPoint[0]
        return ((stored.astype(np.float64) - zero) * scale).astype(np.float32)

    def run_all(self, inputs: Arrays) -> Values:
        """Every tensor that an op makes, and the inputs."""
        run = self._part(self.graph.operators, list(self.graph.inputs), sorted(self._made), preserve=True)
        return run({self._names[name]: array for name, array in inputs.items()})

    def only(self, op: Any) -> Callable[[Values], Values]:
        return self._part([op], [i for i in dict.fromkeys(op.inputs) if i in self._made], list(op.outputs))

    def without(self, op: Any) -> Callable[[Values], Values]:
        """The model with the op's outputs as inputs."""
        others = [other for other in self.graph.operators if other is not op]
        return self._part(others, [*self.graph.inputs, *op.outputs], list(self.graph.outputs))

    def _part(
        self, operators: list[Any], inputs: list[int], outputs: list[int], preserve: bool = False
    ) -> Callable[[Values], Values]:
        graph, model = copy.copy(self.graph), copy.copy(self._model)
        graph.operators, graph.inputs = operators, np.array(inputs, np.int32)
        graph.outputs = self.graph.outputs if preserve else np.array(outputs, np.int32)
        # The interpreter runs the first one; those of loops and branches keep their places.
        model.subgraphs = [graph, *self._model.subgraphs[1:]]
        model.signatureDefs = None
        with quiet():
            part = lite.Interpreter(
                model_content=bytes(flatbuffer_utils.convert_object_to_bytearray(model)),
                experimental_preserve_all_tensors=preserve,
                experimental_op_resolver_type=lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )

        def run(values: Values) -> Values:
            for index in inputs:
                part.resize_tensor_input(index, values[index].shape)
            part.allocate_tensors()
            for index in inputs:
                part.set_tensor(index, values[index])
            part.invoke()
            return {index: part.get_tensor(index) for index in outputs}

        return run
