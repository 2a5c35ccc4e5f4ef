"""Recipes for ``tfa.layers``. What has no weights is a function; what has is a layer of Keras 3."""

import keras
import tensorflow as tf


def _scatter(updates, mask, height, width):
    batch, channels = tf.shape(updates)[0], updates.shape[-1]
    places = (
        tf.cast(mask, tf.int64) + tf.range(tf.cast(batch, tf.int64))[:, None, None, None] * height * width * channels
    )
    flat = tf.scatter_nd(
        tf.reshape(places, [-1, 1]), tf.reshape(updates, [-1]), tf.cast([batch * height * width * channels], tf.int64)
    )
    return tf.reshape(flat, [batch, height, width, channels])


def max_unpooling_2d(updates, mask, pool_size=(2, 2), strides=(2, 2), padding="SAME"):
    """``mask`` as tf.nn.max_pool_with_argmax(..., include_batch_in_index=False) gives it."""
    rows, columns = updates.shape[1:3]
    if padding == "SAME":
        return _scatter(updates, mask, rows * strides[0], columns * strides[1])
    return _scatter(updates, mask, (rows - 1) * strides[0] + pool_size[0], (columns - 1) * strides[1] + pool_size[1])


def max_unpooling_2d_v2(updates, mask, output_size):
    """``output_size``: [batch, height, width, channels]."""
    return _scatter(updates, mask, output_size[1], output_size[2])


def maxout(inputs, num_units, axis=-1):
    axis %= inputs.shape.rank
    shape = tf.shape(inputs)
    pieces = tf.concat([shape[:axis], [shape[axis] // num_units, num_units], shape[axis + 1 :]], 0)
    return tf.reduce_max(tf.reshape(inputs, pieces), axis)


def correlation_cost(a, b, kernel_size, max_displacement, stride_1, stride_2, pad):
    """Two batches of maps, channels last; a channel of the result per displacement (y, then x)."""
    reach = max_displacement // stride_2 * stride_2
    a, b = (tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) for x in (a, b))
    height, width = (size - 2 * max_displacement for size in a.shape[1:3])
    centre = a[:, max_displacement : max_displacement + height, max_displacement : max_displacement + width]
    costs = [
        tf.reduce_mean(
            centre * b[:, max_displacement + y :, max_displacement + x :][:, :height, :width], -1, keepdims=True
        )
        for y in range(-reach, reach + 1, stride_2)
        for x in range(-reach, reach + 1, stride_2)
    ]
    return tf.nn.avg_pool2d(tf.concat(costs, -1), kernel_size, stride_1, "VALID")


def poincare_normalize(x, axis=1, epsilon=1e-5):
    return x * tf.minimum((1 - epsilon) * tf.math.rsqrt(tf.reduce_sum(tf.square(x), axis, keepdims=True)), 1.0)


def spatial_pyramid_pooling_2d(inputs, bins):
    """``bins``: pairs (rows, columns); [batch, sum of rows * columns, channels]. What doesn't divide is cut off."""
    pooled = []
    for rows, columns in bins:
        height, width = inputs.shape[1] // rows, inputs.shape[2] // columns
        means = tf.nn.avg_pool2d(
            inputs[:, : rows * height, : columns * width], (height, width), (height, width), "VALID"
        )
        pooled.append(tf.reshape(means, [-1, rows * columns, inputs.shape[3]]))
    return tf.concat(pooled, 1)


def stochastic_depth(shortcut, residual, survival_probability=0.5, training=False, seed=(0, 0)):
    """One draw for the whole batch; a new seed for each step."""
    if not training:
        return shortcut + survival_probability * residual
    survives = tf.random.stateless_uniform([], seed) < survival_probability
    return shortcut + tf.cast(survives, residual.dtype) * residual


class FilterResponseNormalization(keras.layers.Layer):
    def __init__(self, epsilon=1e-6, **options):
        super().__init__(**options)
        self.epsilon = epsilon

    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape[-1:], initializer="zeros", name="beta")

    def call(self, inputs):
        squares = tf.reduce_mean(tf.square(inputs), [1, 2], keepdims=True)
        return self.gamma * (inputs * tf.math.rsqrt(squares + self.epsilon)) + self.beta


class PolynomialCrossing(keras.layers.Layer):
    """``layer([x0, x])``: the cross layer of Deep & Cross Networks; a projection is two Dense layers in one's place."""

    def __init__(self, diag_scale=0.0, **options):
        super().__init__(**options)
        self.diag_scale = diag_scale

    def build(self, shapes):
        last = shapes[-1][-1]
        self.kernel = self.add_weight(shape=[last, last], initializer="truncated_normal", name="kernel")
        self.bias = self.add_weight(shape=[last], initializer="zeros", name="bias")

    def call(self, inputs):
        x0, x = inputs
        return x0 * (x @ self.kernel + self.diag_scale * x) + x + self.bias


class Snake(keras.layers.Layer):
    def build(self, shape):
        self.frequency = self.add_weight(shape=[], initializer="ones", name="frequency")

    def call(self, x):
        return x + tf.square(tf.sin(self.frequency * x)) / self.frequency


class TLU(keras.layers.Layer):
    def __init__(self, affine=False, **options):
        super().__init__(**options)
        self.affine = affine

    def build(self, shape):
        self.tau = self.add_weight(shape=shape[1:], initializer="zeros", name="tau")
        self.alpha = self.add_weight(shape=shape[1:], initializer="zeros", name="alpha") if self.affine else 0.0

    def call(self, inputs):
        return tf.maximum(inputs, self.tau + self.alpha * inputs)


class WeightNormalizedDense(keras.layers.Dense):
    """tfa.layers.WeightNormalization(Dense(units), data_init=False)."""

    def build(self, shape):
        super().build(shape)
        lengths = tf.linalg.norm(self._kernel, axis=0)
        self.g = self.add_weight(shape=[self.units], initializer="ones", name="g")
        self.g.assign(lengths)

    def call(self, inputs):
        outputs = inputs @ (tf.math.l2_normalize(self._kernel, 0) * self.g)
        return self.activation(outputs + self.bias if self.use_bias else outputs)


class NoisyDense(keras.layers.Layer):
    """Factorised noise, drawn anew by ``reset_noise()``; ``remove_noise()`` for evaluation."""

    def __init__(self, units, sigma=0.5, **options):
        super().__init__(**options)
        self.units, self.sigma = units, sigma

    def build(self, shape):
        size = shape[-1]
        mean = keras.initializers.RandomUniform(-(size**-0.5), size**-0.5)
        deviation = keras.initializers.Constant(self.sigma * size**-0.5)
        kernel, bias = [size, self.units], [self.units]
        self.mu_kernel = self.add_weight(shape=kernel, initializer=mean, name="mu_kernel")
        self.mu_bias = self.add_weight(shape=bias, initializer=mean, name="mu_bias")
        self.sigma_kernel = self.add_weight(shape=kernel, initializer=deviation, name="sigma_kernel")
        self.sigma_bias = self.add_weight(shape=bias, initializer=deviation, name="sigma_bias")
        self.eps_in = self.add_weight(shape=[size, 1], initializer="zeros", trainable=False, name="eps_in")
        self.eps_out = self.add_weight(shape=bias, initializer="zeros", trainable=False, name="eps_out")
        self.reset_noise()

    def reset_noise(self):
        for noise in (self.eps_in, self.eps_out):
            drawn = tf.random.normal(noise.shape)
            noise.assign(tf.sign(drawn) * tf.sqrt(tf.abs(drawn)))

    def remove_noise(self):
        self.eps_in.assign(tf.zeros_like(self.eps_in))
        self.eps_out.assign(tf.zeros_like(self.eps_out))

    def call(self, inputs):
        kernel = self.mu_kernel + self.sigma_kernel * (self.eps_in * self.eps_out)
        return inputs @ kernel + self.mu_bias + self.sigma_bias * self.eps_out
