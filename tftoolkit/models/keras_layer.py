"""A ``tf.Module`` as a layer of Keras 3."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from tftoolkit.trainers.naming import named_variables


class KerasLayer(keras.layers.Layer):
    """Makes a module's variables weights of a Keras model, which by itself sees none but Keras's own.

    A model that holds it saves and loads weights, but not its own structure (``model.save``): Keras cannot write a
    module down.

    Args:
      module: what is called, with ``training`` if it takes that, and in training with a ``key`` if it takes one, so
        that its dropout drops; its variables must exist.
      seed: of the keys, which follow one another as in ``keras.layers.Dropout``; drawn at random by default.
      options: of ``keras.layers.Layer``.

    Raises:
      ValueError: the module has no variables (yet).
    """

    def __init__(self, module: tf.Module, *, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        variables = named_variables(module)
        if not variables:
            raise ValueError(
                f"{type(module).__name__} has no variables, so that it need not be a layer; call it as it is"
            )
        self.module = module
        taken = inspect.signature(module).parameters
        self._takes_training = "training" in taken
        self.seed_generator = keras.random.SeedGenerator(seed) if "key" in taken else None
        for name, variable in variables.items():
            weight = keras.Variable(
                variable, dtype=variable.dtype.name, trainable=variable.trainable, name=name.replace("/", ".")
            )
            self._track_variable(weight)
        self.built = True

    def call(self, *inputs: Any, training: bool | None = None, **options: Any) -> Any:
        """The module's call, which gets ``training`` if it has such a parameter, and a ``key`` in training."""
        if self._takes_training:
            options["training"] = bool(training)
        if self.seed_generator is not None and training and options.get("key") is None:
            options["key"] = tf.cast(self.seed_generator.next(), tf.int32)
        return self.module(*inputs, **options)
