"""Functions of users that the engine calls are AutoGraph's to convert, as they would be where TensorFlow calls them."""

from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

_Function = TypeVar("_Function", bound=Callable[..., Any])


def as_written(function: _Function) -> _Function:
    """A function of the user as TensorFlow would call it here: with AutoGraph, where that is on, or as it is."""
    if not tf.inside_function():
        return function
    internal = tf.__internal__.autograph
    converted: _Function = internal.tf_convert(function, internal.control_status_ctx())
    return converted
