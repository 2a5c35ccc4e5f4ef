"""Errors of the pipelines that are not plain ValueError or TypeError."""

import re

import tensorflow as tf

from tftoolkit.errors import CodedError


class StateMismatchError(CodedError, ValueError):
    """A saved state belongs to another pipeline; the message names each difference."""

    error_code = "pipeline-state"


class SourceError(CodedError, OSError):
    """A source cannot be read: a folder vanished, a file is damaged, a place cannot be written to."""

    error_code = "source-unreadable"


def message_of(error: Exception) -> str:
    """The text of ``error`` on one line, without the nodes, ops and stack traces that TensorFlow writes around it."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*|\n\s*\[\[.*|\n\s*Traceback \(.*", "", str(error), flags=re.DOTALL)
    text = re.sub(
        r"^(Graph execution error:|Detected at node.*|\s+File \".*|<stack traces unavailable>)$", "", text, flags=re.M
    )
    return " ".join(text.split())


# The text of what sources' own Python code, the ops that read files, and tf.io.parse_example say of a named record.
_MESSAGE = re.compile(
    r"(?:SourceError: |(?:ReadRecords|IndexRecords|ReadTokens): |Name: (?=.*, record \d))(.*?)\s*(?:\[Op:|\n|$)"
)


def source_error(error: tf.errors.OpError) -> SourceError | None:
    """The SourceError that a source raised inside a data set, or None if ``error`` has another cause.

    TensorFlow hands an exception raised by Python code inside a graph on as ``tf.errors.UnknownError`` with the
    exception's type, text and traceback in one long message; this gets the text back. Errors of ops that read records
    or tokens come with the op and the graph node written around them.
    """
    found = _MESSAGE.search(error.message)
    return SourceError(found.group(1)) if found else None
