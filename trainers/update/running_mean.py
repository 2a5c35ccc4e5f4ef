"""A mean over many steps, in variables, for metrics of a whole epoch."""

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import move, total


class RunningMean(tf.Module):
    """The weighted mean of all values since the last reset, e.g. of an epoch::

        self.accuracy = trainers.RunningMean()                                  # in the step's __init__
        return {"loss": loss, "epoch_accuracy": self.accuracy.update(correct)}  # in its __call__
        Trainer(…, hooks=[(trainers.every(epochs=1), step.accuracy.reset)])

    Its variables are part of every checkpoint, so a resumed epoch ends with the mean of an undisturbed one. A skipped
    step does not count. Sums are float64, since float32 stops counting at 2^24.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sum = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="sum")
        self.weight = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="weight")

    def update(self, values: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        """Count ``values`` (any shape; numbers or truth values) with ``weights`` (of their shape; None: 1 each).

        Under a strategy those of all replicas count.

        Returns:
            The mean so far, a float32 scalar; NaN if there is no weight.

        Raises:
            ValueError: the weights have another shape than the values.
        """
        numbers = tf.cast(values, tf.float64)
        shares = tf.ones_like(numbers) if weights is None else tf.cast(weights, tf.float64)
        if not numbers.shape.is_compatible_with(shares.shape):
            raise ValueError(f"weights must have the values' shape {numbers.shape}, but have {shares.shape}")
        added = total([tf.reduce_sum(numbers * shares), tf.reduce_sum(shares)])
        before = [variable.read_value() for variable in (self.sum, self.weight)]
        kept = zip((self.sum, self.weight), before, added, strict=True)
        sums, weight = (move(variable, old, old + new) for variable, old, new in kept)
        return tf.cast(sums / weight, tf.float32)

    def reset(self, trainer: object = None) -> None:
        """Begin anew; can be a hook of the trainer as it is."""
        self.sum.assign(0.0)
        self.weight.assign(0.0)
