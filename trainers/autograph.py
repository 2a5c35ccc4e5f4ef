"""AutoGraph is for the code of users: what this package calls between their functions is graph code already.

Converting that, too, took some seconds of each process that trains, and put our own lines into the account of where a
step went wrong. TensorFlow keeps a list of packages to leave alone, itself and Keras among them; parts of this one are
added. AutoGraph then looks no deeper, so functions of users are called from there through :func:`as_written`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf
from tensorflow.python.autograph.core import config

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PACKAGE = __name__.rpartition(".")[0]
_LEFT_ALONE = ("autograph", "distribution", "naming", "runners", "step", "update")
_CONVERTED = ("update.recompute",)  # wraps layers of users


def _leave_alone() -> None:
    rules = (
        *(config.Convert(f"{_PACKAGE}.{name}") for name in _CONVERTED),
        *(config.DoNotConvert(f"{_PACKAGE}.{name}") for name in _LEFT_ALONE),
    )
    config.CONVERSION_RULES = (*rules, *config.CONVERSION_RULES)


_leave_alone()


def as_written(function: _Function) -> _Function:
    """A function of the user as TensorFlow would call it here: with AutoGraph, where that is on, or as it is."""
    if not tf.inside_function():
        return function
    internal = tf.__internal__.autograph
    converted: _Function = internal.tf_convert(function, internal.control_status_ctx())
    return converted
