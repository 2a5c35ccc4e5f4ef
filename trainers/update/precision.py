"""Mixed precision: float32 weights that a model reads as bfloat16 or float16 (Micikevicius et al. 2018)."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import own
from tftoolkit.trainers.naming import keras_generation, keras_objects, named_layers

DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16, "float16": tf.float16}


class LossScale(tf.Module):
    """Dynamic loss scale: doubled after 2000 good steps in a row, halved after one that overflowed; a power of two.

    Attributes:
        scale: float32 variable between 1 and 2^24, at first 2^15.
        good_steps: int64 variable, how many steps went well since the scale was last changed.
    """

    growth_steps = 2000

    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(2.0**15, trainable=False)
        self.good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self, finite: tf.Tensor) -> tf.Tensor:
        """Adapt to a step whose gradients were ``finite`` (bool scalar) or not.

        Returns:
            Bool scalar: the scale was halved, so that a step that overflowed may go well the next time.
        """
        good = self.good_steps + 1
        grow = tf.logical_and(finite, good >= self.growth_steps)
        halved = tf.logical_and(tf.logical_not(finite), self.scale > 1.0)
        factor = tf.where(grow, 2.0, tf.where(finite, 1.0, 0.5))
        own(self.scale).assign(tf.clip_by_value(self.scale * factor, 1.0, 2.0**24))
        own(self.good_steps).assign(tf.where(tf.logical_and(finite, tf.logical_not(grow)), good, 0))
        return halved


def check_model(model: Any, precision: str) -> None:
    """Refuse a model that would compute in another precision than asked for.

    Raises:
        ValueError: Keras layers have another policy; or the model can't be looked into.
    """
    layers = [layer for layer in keras_objects(model) if getattr(layer, "variables", None)]
    computes = {getattr(layer, "compute_dtype", "float32"): layer.name for layer in layers}
    others = {
        dtype: name for dtype, name in computes.items() if dtype in DTYPES and dtype not in ("float32", precision)
    }
    for dtype, name in others.items():
        raise ValueError(f"the Keras layer {name!r} computes in {dtype}: give precision={dtype!r}, not {precision!r}")
    if precision == "float32":
        return
    modules = _modules(model)
    if layers and not modules and precision not in computes:
        raise ValueError(
            f"precision is {precision!r}, but the Keras model computes in {', '.join(sorted(computes))}: make it under "
            f"the policy 'mixed_{precision}' (keras.config.set_dtype_policy or "
            "tf_keras.mixed_precision.set_global_policy)"
        )
    if not layers and not modules:
        raise ValueError(f"precision={precision!r} needs the model (a tf.Module or Keras model), not its variables")
    for module in modules:
        for name in dir(type(module)):
            if isinstance(getattr(type(module), name, None), tf.types.experimental.PolymorphicFunction):
                raise ValueError(
                    f"precision={precision!r} can't reach into {type(module).__name__}.{name}, which would keep the "
                    "weights of its first call: take its @tf.function away (the runner compiles the whole step)"
                )


def weights_in(model: Any, dtype: tf.DType) -> dict[int, tf.Tensor]:
    """The float32 variables in the ``tf.Module``s of ``model``, cast to ``dtype``; by ``id``, for :func:`reading`.

    Attributes that a module's class names in ``KEPT_FLOAT32`` stay what they are: variables that it assigns to.
    """
    kept = {id(getattr(module, name)) for module in _modules(model) for name in getattr(module, "KEPT_FLOAT32", ())}
    variables = {id(leaf): leaf for leaf in module_leaves(model) if isinstance(leaf, tf.Variable)}
    wide = {key: one for key, one in variables.items() if one.dtype == tf.float32 and key not in kept}
    return {key: tf.cast(variable, dtype) for key, variable in wide.items()}


def module_leaves(model: Any) -> Iterator[Any]:
    """What the attributes of the ``tf.Module``s of ``model`` hold, Keras layers left out."""
    for module in _modules(model):
        yield from tf.Module._flatten(module, recursive=False)


@contextlib.contextmanager
def reading(model: Any, values: Mapping[int, tf.Tensor]) -> Iterator[None]:
    """Within, the ``tf.Module``s of ``model`` hold other values in place of leaves (``id(leaf)`` -> value).

    The idea is that of ``torch.func.functional_call``. Layers of Keras are left alone.
    """
    modules = _modules(model)
    before = [dict(vars(module)) for module in modules]
    try:
        for module in modules:
            attributes = vars(module)  # not setattr, which would track the change
            for key in attributes.keys() - module._TF_MODULE_IGNORED_PROPERTIES:
                if any(id(leaf) in values for leaf in tf.nest.flatten(attributes[key])):
                    attributes[key] = tf.nest.map_structure(lambda leaf: values.get(id(leaf), leaf), attributes[key])
            # A list of variables would come out short, e.g. in a penalty on all weights.
            attributes["_flatten"] = _refuse_listing
        yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            for key in vars(module).keys() - attributes.keys():
                del vars(module)[key]
            vars(module).update(attributes)


def _modules(model: Any) -> list[tf.Module]:
    found = [model, *named_layers(model).values()]
    return [module for module in found if isinstance(module, tf.Module) and not keras_generation(module)]


def _refuse_listing(*_: Any, **__: Any) -> None:
    raise RuntimeError(
        "inside update.gradients with reduced precision, or inside a rematerialised layer, a model's weights can't be "
        "listed: use `update.weights`"
    )
