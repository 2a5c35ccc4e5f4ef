"""Counting the arithmetic of a compiled program."""

from typing import Any

import tensorflow as tf


def count(function: Any, *arguments: Any) -> int | None:
    """Floating-point operations of one call of ``function``, as XLA sees it before it optimizes.

    Counted are matrix products and convolutions, two for each multiply-add, as is usual for model FLOPs utilization
    (Chowdhery et al. 2022, appendix B); the bodies of loops whose length the program doesn't state count once, and
    custom operations not at all.

    Args:
        function: a ``tf.function(jit_compile=True)``.
        arguments: their ``tf.TensorSpec``, of static shape, or dicts of such.

    Returns:
        The number, or None if XLA can't compile the function.
    """
    from tensorflow.compiler.xla.service import hlo_pb2  # not part of TensorFlow's API, but of its wheel

    values = tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), arguments
    )  # it takes no dict of specs
    try:
        serialized = function.experimental_get_compiler_ir(*values)(stage="hlo_serialized")
    except (tf.errors.OpError, ValueError, TypeError):
        return None
    module = hlo_pb2.HloModuleProto.FromString(serialized)
    computations = {computation.id: computation for computation in module.computations}
    return _of_computation(computations[module.entry_computation_id], computations)


def _of_computation(computation: Any, computations: dict[int, Any]) -> int:
    shapes = {instruction.id: instruction.shape for instruction in computation.instructions}
    total = 0
    for instruction in computation.instructions:
        size = 2 * _product(instruction.shape.dimensions)
        if instruction.opcode == "dot":
            left = shapes[instruction.operand_ids[0]].dimensions
            total += size * _product(left[i] for i in instruction.dot_dimension_numbers.lhs_contracting_dimensions)
        elif instruction.opcode == "convolution":
            kernel = shapes[instruction.operand_ids[1]].dimensions
            numbers = instruction.convolution_dimension_numbers
            spatial = _product(kernel[i] for i in numbers.kernel_spatial_dimensions)
            total += size * spatial * kernel[numbers.kernel_input_feature_dimension]
        elif instruction.opcode in ("call", "while", "conditional", "fusion"):
            total += sum(_of_computation(computations[i], computations) for i in instruction.called_computation_ids)
    return total


def _product(numbers: Any) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result
