"""Random small models: Keras 3, tf_keras and tf.Module; convolutions, recurrent layers, attention, loops, branches.

Those with integers, strings, masks or channels of very different size are in ``unusual``.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import unusual
from draw import FREE, MAX_SIZE, SHAPES, VOCABULARY, Draw, RandomModel
from layers import FEATURE_LAYERS, IMAGE_LAYERS, SEQUENCE_LAYERS
from steps import Step, raw_step

UNUSUAL_FROM = 1000  # the docs have figures of the seeds below


def applied(step: Any, hidden: Any) -> Any:
    """The step's output; None where the step does not fit its input, or blows it up."""
    layers = step if isinstance(step, list) else [step]
    try:
        result = functools.reduce(lambda h, layer: layer(h), layers, hidden)
    except (ValueError, tf.errors.InvalidArgumentError):  # a window larger than the image, for instance
        return None
    return result if 0 < np.prod(result.shape[1:]) <= MAX_SIZE else None


def keras_model(d: Draw) -> RandomModel:
    """A functional model, with residual branches, sometimes a second input, and a second output with shared layers."""
    kind = d.one(*SHAPES)
    batch = d.one(1, 4, 4, None)
    tokens = kind == "tokens"
    x = d.keras.Input(SHAPES[kind], batch_size=batch, name="x", dtype="int32" if tokens else "float32")
    hidden = d.layers.Embedding(VOCABULARY, d.width)(x) if tokens else x
    table = {2: FEATURE_LAYERS, 3: SEQUENCE_LAYERS, 4: IMAGE_LAYERS}[len(hidden.shape)]
    parts = [d.keras.__name__, kind, "free batch" if batch is None else f"batch of {batch}"]
    for _ in range(d.size(1, 4)):
        if d.chance(0.35):
            name, step = raw_step(d, hidden.shape)
            result = applied(d.layers.Lambda(step), hidden)
        else:
            name = d.one(*table)
            result = applied(table[name](d), hidden)
        if result is not None:
            parts.append(name)
            hidden = d.layers.Add()([result, d.layers.Activation("tanh")(result)]) if d.chance(0.2) else result
    hidden = d.layers.Flatten()(hidden)
    inputs = {"x": x}
    if d.chance(0.3):
        inputs["y"] = d.keras.Input([5], batch_size=batch, name="y")
        hidden = d.layers.Concatenate()([hidden, inputs["y"]])
    outputs = {"scores": d.layers.Dense(4, activation=d.one("linear", "softmax", "sigmoid"))(hidden)}
    if d.chance(0.3):
        shared = d.layers.Dense(8, activation=d.activation())
        outputs["second"] = d.layers.Dense(2)(shared(d.layers.Dense(8)(shared(d.layers.Dense(8)(hidden)))))
    model = d.keras.Model(inputs, outputs)
    specs = [tf.TensorSpec([batch, *tensor.shape[1:]], tensor.dtype, name) for name, tensor in inputs.items()]

    def call(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        return model(dict(zip(inputs, values, strict=True)), training=False)

    return RandomModel(model, {"serving_default": (call, specs)}, tuple(parts))


def module(d: Draw) -> RandomModel:
    """A tf.Module of raw ops, sometimes with more than one signature."""
    kind = d.one("images", "odd images", "sequence", "features")
    batch = d.one(1, 4, 4, None)
    shape = SHAPES[kind]
    steps: list[Step] = []
    parts = ["tf.Module", kind, "free batch" if batch is None else f"batch of {batch}"]
    hidden = tf.constant(d.rng.standard_normal([batch or FREE, *shape]).astype(np.float32))
    for _ in range(d.size(2, 6)):
        name, step = raw_step(d, hidden.shape)
        result = applied(step, hidden)
        if result is not None:
            steps.append(step)
            parts.append(name)
            hidden = result
    size = int(np.prod(hidden.shape[1:]))
    holder = tf.Module()
    holder.head = tf.Variable(d.array(size, 6))

    def body(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(functools.reduce(lambda h, step: step(h), steps, x), [-1, size])

    def scores(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scores": body(x) @ holder.head}

    def best(x: tf.Tensor) -> dict[str, tf.Tensor]:
        found = body(x) @ holder.head
        return {"best": tf.argmax(found, -1, tf.int32), "highest": tf.reduce_max(found, -1)}

    def distance(x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"distance": tf.norm(body(x) - body(y) + 0.1, axis=-1), "sum": tf.nn.relu(body(x) + body(y))}

    specs = [tf.TensorSpec([batch, *shape], tf.float32, name) for name in ("x", "y")]
    signatures: dict[str, tuple[Callable[..., Any], list[tf.TensorSpec]]] = {"serving_default": (scores, specs[:1])}
    if d.chance(0.3):
        signatures["best"] = (best, specs[:1])
        parts.append("integer output")
    if d.chance(0.3):
        signatures["distance"] = (distance, specs)
    return RandomModel(holder, signatures, (*parts, f"{len(signatures)} signatures"))


def random_model(seed: int) -> RandomModel:
    """The same model for the same seed; from ``UNUSUAL_FROM`` on most are of unusual kinds, too."""
    d = Draw(seed)
    kinds = [keras_model, keras_model, module] if seed < UNUSUAL_FROM else [keras_model, module, *unusual.KINDS]
    return d.one(*kinds)(d)
