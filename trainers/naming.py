"""Stable names of variables and layers: the path of attributes that leads to them.

Inside Keras models (either generation) the path goes through layers. Keras numbers its automatic names over the whole
process ("dense_7"), so two processes give one model different names; here they are numbered within their parent.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

KERAS_3 = "Keras 3 (package keras)"
TF_KERAS = "Keras 2 (package tf_keras)"


class PerWeight(tf.Module):
    """Base of modules that keep variables of their own for each weight of a model, such as an optimizer's moments.

    Attributes:
        weights: the model's variables.
        slots: slot name -> one variable per weight, None for a weight that needs none. Each is named after its weight,
            not by its position, so that a changed order can't swap them.
    """

    # The weights belong to the model: reached from here they would get a second name.
    _TF_MODULE_IGNORED_PROPERTIES = frozenset({"weights", *tf.Module._TF_MODULE_IGNORED_PROPERTIES})

    def __init__(self) -> None:
        super().__init__()
        self.weights: tuple[tf.Variable, ...] = ()
        self.slots: dict[str, list[Any]] = {}


def keras_generation(value: Any) -> str | None:
    """``KERAS_3`` or ``TF_KERAS`` for a layer, model, optimizer, variable, … of Keras; None for everything else.

    A package that isn't imported has made no objects, so nothing is imported to find out.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(value).__mro__}
    if "keras" in packages:
        return KERAS_3
    return TF_KERAS if "tf_keras" in packages else None


def tf_variable(value: Any) -> Any:
    """The variable that TensorFlow itself sees behind one of Keras' variables; any other value unchanged."""
    if _is_keras_3_variable(value):
        return value.value
    # What tf_keras wraps the weights of a layer with a mixed policy in.
    return value._variable if any(cls.__name__ == "AutoCastVariable" for cls in type(value).__mro__) else value


def named_variables(root: Any) -> dict[str, tf.Variable]:
    """Every variable below ``root`` (a ``tf.Module`` or Keras layer), trainable or not, sorted by name.

    Includes the state of Keras' random generators (dropout). A variable with several paths gets the shortest.

    Raises:
        ValueError: a :class:`PerWeight` module serves a weight that isn't below ``root``.
    """
    names: dict[Any, str] = {}
    holders: list[tuple[str, PerWeight]] = []
    for name, value in _walk(root):
        if isinstance(value, PerWeight):
            holders.append((name, value))
        elif _is_variable(value):
            names.setdefault(tf_variable(value).ref(), name)
    for holder_name, holder in holders:
        for slot, variables in holder.slots.items():
            for weight, variable in zip(holder.weights, variables, strict=True):
                if variable is None:
                    continue
                if weight.ref() not in names:
                    raise ValueError(
                        f"the step trains {weight.name} but doesn't hold it, so no checkpoint would: "
                        "keep the model as an attribute of the step"
                    )
                names[variable.ref()] = f"{holder_name}/slots/{slot}/{names[weight.ref()]}"
    return {name: ref.deref() for ref, name in sorted(names.items(), key=lambda item: item[1])}


def named_layers(root: Any) -> dict[str, Any]:
    """Every ``tf.Module`` and Keras layer below ``root`` by name, each once; ``root`` itself isn't among them."""
    names: dict[int, tuple[str, Any]] = {}
    for name, value in _walk(root):
        if value is not root and (isinstance(value, tf.Module) or _is_keras_layer(value)):
            names.setdefault(id(value), (name, value))
    return dict(names.values())


def trained_variables(model: Any) -> dict[str, Any]:
    """The trainable variables of a model (or a sequence of variables) by name, in the order of the model's own list.

    Keras 3 variables come as such.
    """
    names = {} if isinstance(model, Sequence) else {v.ref(): name for name, v in named_variables(model).items()}
    weights = list(model if isinstance(model, Sequence) else model.trainable_variables)
    if isinstance(model, tf.Module):  # which doesn't see layers of Keras 3
        weights += [weight for layer in keras_objects(model) for weight in getattr(layer, "trainable_variables", ())]
    unique = {tf_variable(weight).ref() if _is_variable(weight) else id(weight): weight for weight in weights}
    return dict(_named(unique.values(), lambda weight: _path_of(weight, names)))


def frozen_variables(root: Any) -> set[Any]:
    """References of the variables below ``root`` that layers of Keras hold, none of them as a trainable one."""
    layers = [value for value in keras_objects(root) if _is_keras_layer(value)]
    held, trainable = (
        {tf_variable(variable).ref() for layer in layers for variable in getattr(layer, names)}
        for names in ("variables", "trainable_variables")
    )
    return held - trainable


def keras_objects(root: Any) -> list[Any]:
    """``root`` (or its elements) and what is below it, as far as it is Keras' (layers and variables)."""
    values = list(root) if isinstance(root, Sequence) else [root, *(value for _, value in _walk(root))]
    return [value for value in values if keras_generation(value)]


def matching(patterns: Iterable[str], names: Sequence[str], what: str | None) -> dict[str, list[str]]:
    """Pattern -> the names that it matches; ``*`` stands for anything, slashes included.

    Args:
        what: the argument that the patterns come from; None if they need not match.

    Raises:
        ValueError: a pattern of ``what`` matches nothing.
    """
    found = {}
    for pattern in patterns:
        expression = re.compile("".join(".*" if char == "*" else re.escape(char) for char in pattern))
        found[pattern] = [name for name in names if expression.fullmatch(name)]
        if what and not found[pattern]:
            raise ValueError(f"{what}: the pattern {pattern!r} matches none of {', '.join(names)}")
    return found


def _walk(root: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of everything below ``root`` that is named, level by level, so that short names come first."""
    level: list[tuple[str, Any]] = [("", root)] if _is_named(root) else []
    visited: set[int] = set()
    while level:
        below = []
        for prefix, parent in level:
            if id(parent) in visited:
                continue
            visited.add(id(parent))
            for name, value in _children(parent):
                path = f"{prefix}/{name}" if prefix else name
                yield path, value
                below.append((path, value))
        level = below


def _children(parent: Any) -> Iterator[tuple[str, Any]]:
    if _is_variable(parent):
        return
    if _is_keras_layer(parent):
        layers = [
            layer
            for layer in parent._flatten_layers(include_self=False, recursive=False)
            if type(layer).__name__ != "InputLayer"
        ]
        yield from _named(layers, lambda layer: _layer_name(parent, layer))
        deeper = {tf_variable(variable).ref() for layer in layers for variable in layer.variables}
        own = [variable for variable in parent.variables if tf_variable(variable).ref() not in deeper]
        yield from _named([*own, *_generator_state(parent)], _variable_name)
    elif isinstance(parent, tf.Module):
        # Called on the class, because `precision` forbids it on instances.
        for path, value in tf.Module._flatten(parent, recursive=False, predicate=_is_named, with_path=True):
            yield "/".join(map(str, path)), value
    else:
        yield from _named(parent.variables if hasattr(parent, "variables") else [parent.state], _variable_name)


def _named(values: Iterable[Any], base: Callable[[Any], str]) -> Iterator[tuple[str, Any]]:
    """Number those values whose base names are equal: kernel, kernel_1, …"""
    taken: set[str] = set()
    for value in values:
        name = stem = base(value)
        number = 0
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        yield name, value


def _layer_name(parent: Any, layer: Any) -> str:
    """The attribute that holds the layer, else the name it was given, else its class."""
    for attribute, value in vars(parent).items():
        if value is layer and not attribute.startswith("_"):
            return attribute
    stem = re.sub(r"_\d+$", "", layer.name)
    return stem if stem.replace("_", "") == type(layer).__name__.lower() else layer.name


def _path_of(weight: Any, names: dict[Any, str]) -> str:
    name = names.get(tf_variable(weight).ref()) if _is_variable(weight) else None
    return name or str(getattr(weight, "path", getattr(weight, "name", weight))).removesuffix(":0")


def _variable_name(variable: Any) -> str:
    leaf = variable.name.rpartition("/")[2].removesuffix(":0")
    return re.sub(r"^(variable|seed_generator)_\d+", r"\1", leaf, flags=re.IGNORECASE)


def _generator_state(layer: Any) -> list[tf.Variable]:
    """State of a tf_keras layer's random generator, which is in none of the layer's lists of variables."""
    generator = getattr(getattr(layer, "_random_generator", None), "_generator", None)
    return [generator.state] if generator is not None else []


def _is_named(value: Any) -> bool:
    return isinstance(value, tf.Module) or _is_variable(value) or _is_keras_layer(value) or _has_keras_3_state(value)


def _is_variable(value: Any) -> bool:
    return isinstance(value, tf.Variable) or _is_keras_3_variable(value)


def _is_keras_layer(value: Any) -> bool:
    return hasattr(value, "_flatten_layers") and keras_generation(value) is not None


def _is_keras_3_variable(value: Any) -> bool:
    return keras_generation(value) == KERAS_3 and any(
        cls.__name__ == "Variable" and cls.__module__.startswith("keras.") for cls in type(value).__mro__
    )


def _has_keras_3_state(value: Any) -> bool:
    names = {cls.__name__ for cls in type(value).__mro__} if keras_generation(value) == KERAS_3 else set()
    return bool(names & {"Metric", "SeedGenerator"})
