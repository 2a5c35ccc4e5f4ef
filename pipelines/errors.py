"""Errors of the pipelines that are not plain ValueError or TypeError."""

import re

import tensorflow as tf


class StateMismatchError(ValueError):
    """A saved state belongs to another pipeline; the message names each difference."""


class SourceError(OSError):
    """A source cannot be read: a folder vanished, a file is damaged, a place cannot be written to."""


def message_of(error: Exception) -> str:
    """The text of ``error`` on one line, without the graph node and the op that TensorFlow writes around it."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*|\[\[.*", "", str(error), flags=re.DOTALL)
    return " ".join(text.split())


def source_error(error: tf.errors.OpError) -> SourceError | None:
    """The SourceError that a source raised inside a data set, or None if ``error`` has another cause.

    TensorFlow hands an exception raised by Python code inside a graph on as ``tf.errors.UnknownError`` with the
    exception's type, text and traceback in one long message; this gets the text back.
    """
    found = re.search(rf"{SourceError.__name__}: (.*?)(?:\n|$)", error.message)
    return SourceError(found.group(1)) if found else None
