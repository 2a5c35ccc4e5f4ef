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
      module: what is called, with ``training`` if it takes that; its variables must exist.
      options: of ``keras.layers.Layer``.

    Raises:
      ValueError: the module has no variables (yet).
    """

    def __init__(self, module: tf.Module, **options: Any) -> None:
        super().__init__(**options)
        variables = named_variables(module)
        if not variables:
            raise ValueError(
                f"{type(module).__name__} has no variables, so that it need not be a layer; call it as it is"
            )
        self.module = module
        self._takes_training = "training" in inspect.signature(module).parameters
        for name, variable in variables.items():
            weight = keras.Variable(
                variable, dtype=variable.dtype.name, trainable=variable.trainable, name=name.replace("/", ".")
            )
            self._track_variable(weight)
        self.built = True

    def call(self, *inputs: Any, training: bool | None = None, **options: Any) -> Any:
        """The module's call, which gets ``training`` if it has such a parameter."""
        if self._takes_training:
            options["training"] = bool(training)
        return self.module(*inputs, **options)
