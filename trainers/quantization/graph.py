"""Where an int8 file rounds: found in the traced graph of a model, and put into a repetition of it."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops

Variables = frozenset[Any]  # references of the variables that a tensor depends on

# Position of the activation and of the weight among the inputs, and the weight's axes that are summed over.
_CONVOLUTIONS = {
    "Conv2D": (0, 1, (0, 1, 2)),
    "DepthwiseConv2dNative": (0, 1, (0, 1)),
    "Conv2DBackpropInput": (2, 1, (0, 1, 3)),  # transposed convolution
}
_MATRIX_PRODUCTS = {"MatMul": ("transpose_a", "transpose_b")} | dict.fromkeys(
    ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), ("adj_x", "adj_y")
)
_SUMS = ("Add", "AddV2")
# What the converter makes part of the product before it: the product's own output is never rounded.
_MERGED = ("BiasAdd", "FusedBatchNormV3", "Relu", "Relu6")
_MERGED_WITH_CONSTANT = ("Add", "AddV2", "Sub", "Mul", "RealDiv")
# These hand integers on as they are: what comes out has the scale of what went in.
_SHAPE_ONLY = ("BatchToSpaceND", "ExpandDims", "Identity", "Reshape", "SpaceToBatchND", "Squeeze", "StopGradient")
_SAME_SCALE = (*_SHAPE_ONLY, "MaxPool", "MaxPoolV2", "Pad", "Slice", "StridedSlice", "Transpose")
_PRODUCTS = {*_CONVOLUTIONS, *_MATRIX_PRODUCTS, "Einsum"}
# TFLite prescribes the scale of their outputs.
_PRESCRIBED = ("LogSoftmax", "Sigmoid", "Softmax", "Tanh")
_counter = itertools.count()


@dataclasses.dataclass(frozen=True)
class Point:
    """An activation that is rounded; ``kind`` and ``weights`` find it again in another trace of the model."""

    name: str
    kind: str
    weights: Variables
    operation: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is rounded: activations, and weights, each known by the variables that it is computed from."""

    points: tuple[Point, ...]
    weights: frozenset[Variables]


def plan(traced: Any, names: Mapping[Any, str]) -> Plan:
    """The plan for a model from the trace of a call in inference; ``names`` is from variable reference to name."""
    graph = _Graph(traced)
    ends: dict[Any, str] = {}
    weights = set()
    for op in traced.graph.get_operations():
        activations, weight = _operands(graph, op)
        if not activations:
            continue
        if weight is not None:
            weights.add(graph.variables[op.inputs[weight[0]].ref()])
        end = _end(graph, op.outputs[0])
        variables = graph.variables[op.inputs[weight[0]].ref()] if weight else frozenset()
        title = " + ".join(sorted(names.get(ref, ref.deref().name.removesuffix(":0")) for ref in variables))
        for source in (_source(op.inputs[i]) for i in activations):
            if source.op.type not in _PRESCRIBED:
                ends.setdefault(source.ref(), "input" if source.op.type == "Placeholder" else source.op.type)
        ends[end.ref()] = title or op.type
    points = [
        Point(name, graph.kinds[ref], graph.trained[ref], ref.deref().op.name)
        for name, ref in _numbered((title, ref) for ref, title in ends.items())
    ]
    return Plan(tuple(points), frozenset(weights))


def repeat(
    traced: Any,
    arguments: Any,
    plan: Plan,
    activation: Callable[[str, tf.Tensor], tf.Tensor],
    weight: Callable[[tf.Tensor, tuple[int, ...]], tf.Tensor],
) -> Any:
    """Compute once more, operation by operation, in the graph that is being built, what ``traced`` computes.

    Args:
        traced: a concrete function of the model.
        arguments: what it was traced with; the tensors among them are computed with.
        activation: name of a point and its tensor -> what takes its place for all that use it.
        weight: a product's weight and the axes summed over -> what takes its place in this product.

    Raises:
        ValueError: one of the plan's points can't be found, or not without doubt.
    """
    graph = _Graph(traced)
    found = {_point_tensor(graph, point).ref(): point.name for point in plan.points}

    def operands(op: tf.Operation, inputs: list[Any]) -> list[Any]:
        _, product = _operands(graph, op)
        if product is None or graph.variables[op.inputs[product[0]].ref()] not in plan.weights:
            return inputs
        return [weight(value, product[1]) if i == product[0] else value for i, value in enumerate(inputs)]

    def result(tensor: tf.Tensor, value: Any) -> Any:
        name = found.get(tensor.ref())
        return activation(name, value) if name else value

    for variable in traced.graph.variables:
        # A tape around the call watches what it is told of.
        tf.compat.v1.get_default_graph().watch_variable(variable)
    given = [leaf for leaf in tf.nest.flatten(arguments) if isinstance(leaf, tf.Tensor)]
    taken = [result(tensor, value) for tensor, value in zip(traced.inputs, given, strict=False)]
    return _repeated(traced, [*taken, *traced.captured_inputs], plan, operands, result)


def _repeated(
    traced: Any,
    inputs: list[Any],
    plan: Plan,
    operands: Callable[[tf.Operation, list[Any]], list[Any]] = lambda op, inputs: inputs,
    result: Callable[[tf.Tensor, Any], Any] = lambda tensor, value: value,
) -> Any:
    target = tf.compat.v1.get_default_graph()
    tf.graph_util.import_graph_def(tf.compat.v1.GraphDef(library=traced.graph.as_graph_def().library), name="")
    values = {tensor.ref(): value for tensor, value in zip(traced.inputs, inputs, strict=True)}
    made: dict[str, tf.Operation] = {}
    for op in traced.graph.get_operations():
        if op.type == "Placeholder":
            continue
        # "_class" asks for the device of another operation, by the name that it had in the other graph.
        attributes = {key: value for key, value in op.node_def.attr.items() if key != "_class"}
        if op.type == "IdentityN" and "_gradient_op_type" in attributes:
            name = _repeated_gradient(traced, op, plan, values)
            attributes["_gradient_op_type"] = tf.compat.v1.AttrValue(s=name.encode())
        before = [made[control.name] for control in op.control_inputs if control.name in made]
        factors = operands(op, [values[tensor.ref()] for tensor in op.inputs])
        with tf.control_dependencies(before), tf.device(op.device):
            types = [tensor.dtype for tensor in op.outputs]
            made[op.name] = target.create_op(op.type, factors, types, name=op.name, attrs=attributes)
        for old, new in zip(op.outputs, made[op.name].outputs, strict=True):
            values[old.ref()] = result(old, new)
    outputs = iter([values[tensor.ref()] for tensor in traced.outputs])
    return tf.nest.map_structure(lambda leaf: None if leaf is None else next(outputs), traced.structured_outputs)


def _repeated_gradient(traced: Any, op: tf.Operation, plan: Plan, values: Mapping[Any, Any]) -> str:
    """What ``tf.custom_gradient`` defined for ``op`` refers to tensors of the traced graph: it is repeated as well.

    Raises:
        ValueError: it computes products anew, which would not be rounded.
    """
    differentiable = [tensor.dtype.is_floating for tensor in op.outputs]

    def gradients(*given: tf.Tensor) -> Any:
        left = iter(given)
        return list(ops.get_gradient_function(op)(op, *(next(left) if is_ else None for is_ in differentiable)))

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in op.outputs if tensor.dtype.is_floating]
    with traced.graph.as_default():
        backward = tf.function(gradients, autograph=False).get_concrete_function(*specs)
    graph = _Graph(traced)
    used = {variable.ref() for variable in backward.graph.variables}
    used |= {ref for tensor in backward.captured_inputs for ref in graph.variables.get(tensor.ref(), ())}
    recomputed = [inner.name for inner in backward.graph.get_operations() if inner.type in _PRODUCTS]
    if recomputed and used & frozenset().union(*plan.weights):
        raise ValueError(f"a custom gradient computes {recomputed[0]} anew, unrounded: leave out rematerialize")

    def repeated(_: tf.Operation, *given: Any) -> Any:
        arguments = [value for value, is_ in zip(given, differentiable, strict=True) if is_]
        captured = [values.get(tensor.ref(), tensor) for tensor in backward.captured_inputs]
        return _repeated(backward, [*arguments, *captured], plan)

    name = f"TfToolkitRepeated-{next(_counter)}"
    tf.RegisterGradient(name)(repeated)
    return name


class _Graph:
    """What each tensor of a traced function depends on.

    Attributes:
        active: references of the tensors that depend on the function's arguments.
        variables: tensor reference -> the variables that it depends on.
        kinds: reference of such a tensor -> what makes it.
        trained: as ``variables``, but only those that are trained: batch norm reads its moving averages in inference.
        uses: tensor reference -> the operations that take it; None stands for the caller of the function.
    """

    def __init__(self, traced: Any) -> None:
        handles = {id(variable.handle): variable for variable in traced.graph.variables}
        count = len(traced.inputs) - len(traced.captured_inputs)
        self.active = {tensor.ref() for tensor in traced.inputs[:count]}
        self.variables: dict[Any, Variables] = {}
        for inner, outer in zip(traced.inputs[count:], traced.captured_inputs, strict=True):
            variable = handles.get(id(outer))
            self.variables[inner.ref()] = frozenset() if variable is None else frozenset([variable.ref()])
        self.uses: dict[Any, list[tf.Operation | None]] = {}
        for op in traced.graph.get_operations():
            inputs = [tensor.ref() for tensor in op.inputs]
            depends = frozenset[Any]().union(*(self.variables.get(ref, frozenset()) for ref in inputs))
            for tensor in op.outputs:
                self.variables.setdefault(tensor.ref(), depends)
                if any(ref in self.active for ref in inputs):
                    self.active.add(tensor.ref())
            if op.type != "Shape":
                for ref in inputs:
                    self.uses.setdefault(ref, []).append(op)
        for tensor in traced.outputs:
            self.uses.setdefault(tensor.ref(), []).append(None)
        self.trained = {
            ref: frozenset(one for one in found if one.deref().trainable) for ref, found in self.variables.items()
        }
        arguments = {tensor.ref(): f"argument {i}" for i, tensor in enumerate(traced.inputs[:count])}
        self.kinds = {
            ref: arguments.get(ref, f"{ref.deref().op.type}:{ref.deref().value_index}") for ref in self.active
        }


def _operands(graph: _Graph, op: tf.Operation) -> tuple[list[int], tuple[int, tuple[int, ...]] | None]:
    """The inputs of a product or sum that are activations; and, with its axes summed over, the one that is a weight."""
    axes = _axes(op)
    if not axes or op.outputs[0].dtype != tf.float32:
        return [], None
    activations = [i for i in axes if op.inputs[i].ref() in graph.active]
    constants = [i for i in axes if i not in activations]
    if op.type in _SUMS:
        return (activations, None) if len(activations) == 2 else ([], None)
    return activations, (constants[0], axes[constants[0]]) if activations and constants else None


def _axes(op: tf.Operation) -> dict[int, tuple[int, ...]]:
    """For each factor of a product its axes that are summed over; for a sum its two terms."""
    if op.type in _SUMS:
        return {0: (), 1: ()}
    if op.type in _CONVOLUTIONS:
        data, weight, axes = _CONVOLUTIONS[op.type]
        return {data: (), weight: axes}
    if op.type in _MATRIX_PRODUCTS:
        left, right = (bool(op.get_attr(name)) for name in _MATRIX_PRODUCTS[op.type])
        return {0: (-2 if left else -1,), 1: (-1 if right else -2,)}
    if op.type == "Einsum" and len(op.inputs) == 2:
        inputs, output = op.get_attr("equation").decode().replace("...", "").split("->")
        return {
            i: tuple(axis - len(term) for axis, label in enumerate(term) if label not in output)
            for i, term in enumerate(inputs.split(","))
        }
    return {}


def _source(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type in _SAME_SCALE:
        tensor = tensor.op.inputs[0]
    return tensor


def _end(graph: _Graph, tensor: tf.Tensor) -> tf.Tensor:
    """The output of the last operation that is merged with the product that made ``tensor``."""
    end = tensor
    while len(uses := graph.uses.get(tensor.ref(), [])) == 1 and (op := uses[0]) is not None:
        if _is_merged(graph, op, tensor):
            end = tensor = op.outputs[0]
        elif op.type in _SHAPE_ONLY:
            tensor = op.outputs[0]
        else:
            break
    return end


def _is_merged(graph: _Graph, op: tf.Operation, tensor: tf.Tensor) -> bool:
    others = [other for other in op.inputs if other is not tensor]
    if any(other.ref() in graph.active for other in others):
        return False
    if op.type in _MERGED:
        return True
    if op.type not in _MERGED_WITH_CONSTANT or (op.type in ("Sub", "RealDiv") and op.inputs[0] is not tensor):
        return False
    shape = others[0].shape if others else tensor.shape
    return shape.rank is not None and shape.num_elements() == (shape[-1] if shape.rank else 1)


def _point_tensor(graph: _Graph, point: Point) -> tf.Tensor:
    similar = [
        ref.deref() for ref in graph.kinds if graph.kinds[ref] == point.kind and graph.trained[ref] == point.weights
    ]
    same = [tensor for tensor in similar if tensor.op.name == point.operation]
    if len(similar) == 1 or len(same) == 1:
        return (same or similar)[0]
    raise ValueError(
        f"the activation {point.name!r} ({point.kind} of the call with the specs) is found {len(similar)} times in "
        "this call: the model must compute the same, in float32, but for dropout and batch norm; tf.name_scope around "
        "its parts keeps operations apart"
    )


def _numbered(titled: Any) -> Iterator[tuple[str, Any]]:
    counts: dict[str, int] = {}
    for title, value in titled:
        number = counts[title] = counts.get(title, -1) + 1
        yield f"{title}_{number}" if number else title, value
