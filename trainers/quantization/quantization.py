"""Quantisation-aware training: a model that computes with the rounding of an int8 file (Jacob et al. 2018)."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.naming import named_variables
from tftoolkit.trainers.quantization import graph as quantization_graph

RANGES = ("calibrated", "learned")
NARROWEST = 1e-6  # a range; an activation that is always zero needs a scale, too


class Range(tf.Module):
    """The numbers that one activation may take: scalars ``minimum`` (0 or less) and ``maximum``, float32.

    The converter wants constants, so they are kept fit for use, and nothing is computed from them on the way.
    """

    def __init__(self, trainable: bool) -> None:
        super().__init__()
        self.minimum = tf.Variable(0.0, trainable=trainable, name="minimum")
        self.maximum = tf.Variable(0.0, trainable=trainable, name="maximum")


class FakeQuantization(tf.Module):
    """A model whose weights and activations are rounded as in an int8 TFLite file, but trainable.

    ``quantized.train(…)`` takes the place of ``model(…)`` in a step, ``quantized(…)`` that in evaluation and in an
    exported signature. The model isn't changed; its calls are traced and repeated with rounding in between:

    * Weights of convolutions and matrix products: to -127 … 127 times max|w| / 127 over the axes that are summed over,
      so one scale per output channel. The gradient passes straight through (Bengio et al. 2013).
    * Inputs of these products, their outputs after bias, batch norm and ReLU, and sums of two activations: to 256 steps
      from a range. What feeds several ops is rounded once.

    ``export.tflite(quantize="int8")`` finds these ranges in the signature: the file's scales are (max - min) / 255. It
    calibrates the other activations (softmax, norms, custom ops) on ``representative``, as always.

    Args:
        model: a ``tf.Module``, a Keras model of either generation, or a function of them; it computes in float32.
        specs: ``tf.TensorSpec`` of each argument that the model is called with when it is exported.
        ranges: "calibrated": moving averages of each batch's minimum and maximum; "learned": the first batch's, then
            trained with the weights: give this object to ``Update`` in place of the model.
        decay: of the moving averages; the first batches count more, so that it needs no warm-up.

    Attributes:
        ranges: name of an activation -> :class:`Range`. An output is called after its weight.
        batches: int64 variable, how many batches :meth:`train` has seen. Ranges don't change where an activation is
            infinite or NaN.

    Raises:
        ValueError: unknown ``ranges``; ``decay`` isn't within 0 and 1; no convolution or matrix product was found; a
            function for a model, whose variables ``Update`` wouldn't find, with learned ranges; made within the scope
            of a ``tf.distribute`` strategy, whose replicas would each come to ranges of their own.
        TypeError: the specs aren't ``tf.TensorSpec``.
    """

    def __init__(
        self, model: Callable[..., Any], *specs: tf.TensorSpec, ranges: str = "calibrated", decay: float = 0.99
    ) -> None:
        super().__init__()
        if ranges not in RANGES:
            raise ValueError(f"ranges must be one of {', '.join(RANGES)}, but is {ranges!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, but is {decay}")
        if tf.distribute.has_strategy():
            raise ValueError(
                "FakeQuantization can't be made within a strategy's scope: each replica would come to ranges of its "
                "own. Train with several replicas first, then with rounding in one process, from the same checkpoint"
            )
        if not specs or not all(isinstance(spec, tf.TensorSpec) for spec in specs):
            raise TypeError(f"specs must be a tf.TensorSpec for each argument of the model, but are {specs}")
        self.model = model
        self.decay = decay
        self.learned = ranges == "learned"
        self._trace = tf.function(lambda *args, **kwargs: model(*args, **kwargs))
        names = {variable.ref(): name for name, variable in named_variables(model).items()}
        traced = self._trace.get_concrete_function(*specs)
        strangers = [v.name for v in traced.graph.variables if v.ref() not in names] if self.learned else []
        if strangers:
            raise ValueError(f"ranges='learned' needs a model that holds its variables; it doesn't hold {strangers}")
        self._plan = quantization_graph.plan(traced, names)
        if not self._plan.weights:
            raise ValueError(
                "the model has no convolution or matrix product with weights, at least not outside of loops and of "
                "its own tf.functions: take the @tf.function away (the runner compiles the whole step)"
            )
        self.ranges = {point.name: Range(self.learned) for point in self._plan.points}
        self.batches = tf.Variable(0, dtype=tf.int64, trainable=False, name="batches")
        self._train = tf.function(lambda *args, **kwargs: self._call(self._observed, args, kwargs), autograph=False)
        self._infer = tf.function(lambda *args, **kwargs: self._call(self._rounded, args, kwargs), autograph=False)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model as in training (e.g. with ``training=True``), with rounding; the ranges take note.

        Raises:
            ValueError: the call computes otherwise than that of the specs, so that an activation can't be found.
        """
        outputs = self._train(*args, **kwargs)
        self.batches.assign_add(1)
        return outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with rounding.

        Raises:
            ValueError: the ranges have seen no batch yet; or as for :meth:`train`.
        """
        with tf.init_scope():
            if tf.executing_eagerly() and self.batches.numpy() == 0:
                raise ValueError("the ranges of activations aren't known yet: call train(…) on some batches first")
        return self._infer(*args, **kwargs)

    def _observed(self, name: str, x: tf.Tensor) -> tf.Tensor:
        known = self.ranges[name]
        low, high = tf.reduce_min(x), tf.reduce_max(x)
        seen = tf.cast(self.batches, tf.float32)
        keep = 1.0 if self.learned else tf.minimum(self.decay, seen / (seen + 1))
        keep = tf.where(known.maximum - known.minimum <= NARROWEST, 0.0, keep)  # nothing is known yet
        finite = tf.math.is_finite(x)
        keep = tf.where(tf.reduce_all(finite), keep, 1.0)
        low, high = (
            # 0 * infinity is NaN.
            tf.where(keep == 1.0, variable, keep * variable + (1 - keep) * tf.stop_gradient(value))
            for variable, value in ((known.minimum, low), (known.maximum, high))
        )
        low = tf.minimum(low, 0.0)
        high = tf.maximum(high, low + NARROWEST)
        known.minimum.assign(low)
        known.maximum.assign(high)
        # Saturated, a NaN or an infinity would be hidden from the guard of `Update`.
        return tf.where(finite, tf.quantization.fake_quant_with_min_max_vars(x, low, high), x)

    def _rounded(self, name: str, x: tf.Tensor) -> tf.Tensor:
        known = self.ranges[name]
        return tf.quantization.fake_quant_with_min_max_vars(x, known.minimum, known.maximum)

    def _call(self, activation: Callable[[str, tf.Tensor], tf.Tensor], args: Any, kwargs: Any) -> Any:
        traced = self._trace.get_concrete_function(*args, **kwargs)
        return quantization_graph.repeat(traced, (args, kwargs), self._plan, activation, quantized_weight)


def quantized_weight(weight: tf.Tensor, summed_over: tuple[int, ...]) -> tf.Tensor:
    """``weight`` rounded to -127 … 127 times max|weight| / 127 over the given axes, differentiated straight through."""
    scale = tf.stop_gradient(tf.reduce_max(tf.abs(weight), summed_over, keepdims=True)) / 127.0
    scale = tf.where(scale > 0, scale, 1.0)
    return weight + tf.stop_gradient(tf.round(weight / scale) * scale - weight)
