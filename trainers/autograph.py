"""AutoGraph is for the code of users: what this package calls between their functions is graph code already.

Converting that, too, took some seconds of each process that trains, and put our own lines into the account of where a
step went wrong. TensorFlow keeps a list of packages to leave alone, itself and Keras among them; parts of this one are
added. AutoGraph then looks no deeper, so functions of users are called from there through :func:`as_written`.
"""

from tensorflow.python.autograph.core import config

from tftoolkit.custom_ops.engine.autograph import as_written

__all__ = ["as_written"]

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
