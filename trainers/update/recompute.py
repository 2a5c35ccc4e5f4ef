"""Recomputing activations in the backward pass instead of keeping them (Chen et al. 2016)."""

import types
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.naming import keras_generation, matching, named_layers, named_variables
from tftoolkit.trainers.update.precision import module_leaves, reading


def rematerialize(model: Any, *patterns: str) -> list[str]:
    """Have layers forget their activations and compute them again for their gradients, by ``tf.recompute_grad``.

    A layer then keeps only its inputs until the backward pass; training costs about one more forward pass of it.

    Args:
        model: a ``tf.Module`` or Keras model; it is changed.
        patterns: names of layers below it, e.g. "blocks/*"; ``*`` stands for anything. A layer inside another one that
            matches is left as it is: recomputing it twice would save nothing.

    Returns:
        The names of the layers.

    Raises:
        ValueError: a pattern matches nothing; a layer with state (dropout of Keras, moving averages), which would
            change a second time, so that the gradients would belong to another output.
        TypeError: a matching ``tf.Module`` can't be called.
    """
    layers = named_layers(model)
    matched = {name for names in matching(patterns, list(layers), "rematerialize").values() for name in names}
    outermost = [name for name in matched if not any(name.startswith(f"{other}/") for other in matched)]
    for name in outermost:
        _check(name, layers[name])
    for name in outermost:
        _wrap(layers[name])
    return sorted(outermost)


def _check(name: str, layer: Any) -> None:
    if not callable(layer):
        raise TypeError(f"{name} is a {type(layer).__name__}, which can't be called")
    state = [name for name, variable in named_variables(layer).items() if not variable.trainable]
    for inner, part in {name: layer, **named_layers(layer)}.items():
        # tf_keras' and Keras 3's layers with dropout or noise.
        if getattr(part, "_random_generator", None) or getattr(part, "seed_generator", None):
            state.append(inner)
    if state:
        raise ValueError(f"{name} can't be rematerialised: it has state that would change twice ({', '.join(state)})")


def _wrap(layer: Any) -> None:
    if keras_generation(layer):
        layer.call = _recomputing(layer, layer.call)
        return
    kind = type(layer)
    call = _recomputing(layer, types.MethodType(kind.__call__, layer))
    # Python looks __call__ up on the class, so the instance gets a class of its own, of the same name.
    layer.__class__ = type(kind.__name__, (kind,), {"__call__": lambda _, *args, **kwargs: call(*args, **kwargs)})


def _recomputing(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = tf.nest.flatten((args, kwargs))
        # What the layer holds is passed in as well: `recompute_grad` sees variables, but not the tensors that
        # stand for them under reduced precision.
        held = {id(leaf): leaf for leaf in module_leaves(layer) if _is_differentiable(leaf)}
        differentiable = [leaf for leaf in given if _is_differentiable(leaf)]

        def recomputed(*tensors: tf.Tensor) -> Any:
            inputs = iter(tensors)
            flat = [next(inputs) if _is_differentiable(leaf) else leaf for leaf in given]
            inner_args, inner_kwargs = tf.nest.pack_sequence_as((args, kwargs), flat)
            with reading(layer, dict(zip(held, inputs, strict=True))):
                return call(*inner_args, **inner_kwargs)

        return tf.recompute_grad(recomputed)(*differentiable, *map(tf.convert_to_tensor, held.values()))

    return wrapped


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, tf.Tensor | tf.Variable) and value.dtype.is_floating
