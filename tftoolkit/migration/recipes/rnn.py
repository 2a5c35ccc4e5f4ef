"""Recipes for ``tfa.rnn`` and ``tfa.layers.ESN``: cells for keras.layers.RNN."""

import keras
import tensorflow as tf


class LayerNormSimpleRNNCell(keras.layers.SimpleRNNCell):
    """Without dropout."""

    def __init__(self, units, layernorm_epsilon=1e-5, **options):
        super().__init__(units, **options)
        self.norm = keras.layers.LayerNormalization(epsilon=layernorm_epsilon, center=False)

    def build(self, shape):
        super().build(shape)
        self.norm.build([None, self.units])

    def call(self, inputs, states, training=False):
        output = self.norm(inputs @ self.kernel + states[0] @ self.recurrent_kernel)
        output = self.activation(output + self.bias if self.use_bias else output)
        return output, [output]


class LayerNormLSTMCell(keras.layers.LSTMCell):
    """Without dropout."""

    def __init__(self, units, norm_epsilon=1e-3, **options):
        super().__init__(units, **options)
        self.kernel_norm, self.recurrent_norm, self.state_norm = (
            keras.layers.LayerNormalization(epsilon=norm_epsilon) for _ in range(3)
        )

    def build(self, shape):
        super().build(shape)
        for norm, size in ((self.kernel_norm, 4), (self.recurrent_norm, 4), (self.state_norm, 1)):
            norm.build([None, size * self.units])

    def call(self, inputs, states, training=False):
        h, c = states
        z = self.kernel_norm(inputs @ self.kernel) + self.recurrent_norm(h @ self.recurrent_kernel)
        i, f, new, o = tf.split(z + self.bias if self.use_bias else z, 4, 1)
        i, f, o = (self.recurrent_activation(gate) for gate in (i, f, o))
        c = self.state_norm(f * c + i * self.activation(new))
        h = o * self.activation(c)
        return h, [h, c]


class PeepholeLSTMCell(keras.layers.LSTMCell):
    """Without dropout."""

    def build(self, shape):
        super().build(shape)
        self.peep_i, self.peep_f, self.peep_o = (
            self.add_weight(shape=[self.units], initializer=self.kernel_initializer, name=f"peep_{gate}")
            for gate in "ifo"
        )

    def call(self, inputs, states, training=False):
        h, c = states
        z = inputs @ self.kernel + h @ self.recurrent_kernel
        i, f, new, o = tf.split(z + self.bias if self.use_bias else z, 4, 1)
        i, f = self.recurrent_activation(i + self.peep_i * c), self.recurrent_activation(f + self.peep_f * c)
        c = f * c + i * self.activation(new)
        h = self.recurrent_activation(o + self.peep_o * c) * self.activation(c)
        return h, [h, c]


class ESNCell(keras.layers.SimpleRNNCell):
    """An echo state network: fixed random weights with a spectral radius. For ESN: keras.layers.RNN(ESNCell(units))."""

    def __init__(self, units, connectivity=0.1, leaky=1.0, spectral_radius=0.9, **options):
        super().__init__(units, recurrent_initializer=self._sparse, trainable=False, **options)
        self.connectivity, self.leaky, self.spectral_radius = connectivity, leaky, spectral_radius

    def _sparse(self, shape, dtype=None):
        weights = keras.initializers.GlorotUniform()(shape, dtype)
        weights = tf.where(tf.random.uniform(shape) <= self.connectivity, weights, 0.0)
        return tf.math.divide_no_nan(weights * self.spectral_radius, tf.reduce_max(tf.abs(tf.linalg.eigvals(weights))))

    def call(self, inputs, states, training=False):
        output, _ = super().call(inputs, states)
        output = (1 - self.leaky) * states[0] + self.leaky * output
        return output, [output]
