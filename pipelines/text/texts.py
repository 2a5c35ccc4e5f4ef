"""The texts of a corpus."""

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.sources.source import Source

TEXTS_AT_ONCE = 256


def texts_of(corpus: Any) -> Iterator[str]:
    """The texts of a corpus one by one, whether it is an iterable of strings or a source with a feature "text"."""
    if hasattr(corpus, "fetch"):
        return _texts_of_source(corpus)
    if isinstance(corpus, str | bytes) or not isinstance(corpus, Iterable):
        raise TypeError(f"corpus: expected texts or a source, got {type(corpus).__name__}")
    return _checked_texts(corpus)


def _checked_texts(corpus: Iterable[Any]) -> Iterator[str]:
    for number, text in enumerate(corpus):
        if not isinstance(text, str):
            raise TypeError(f"corpus: expected strings, but text {number} is {type(text).__name__}")
        yield text


def _texts_of_source(source: Source) -> Iterator[str]:
    spec = source.element_spec.get("text")
    if spec is None or spec.dtype != tf.string or spec.shape.rank != 0:
        raise ValueError(f"corpus: a source with a string feature 'text' is needed, this one has {source.element_spec}")
    for start in range(0, len(source), TEXTS_AT_ONCE):
        indices = tf.range(start, min(start + TEXTS_AT_ONCE, len(source)), dtype=tf.int64)
        for index, text in enumerate(source.fetch(indices)["text"].numpy(), start):
            try:
                yield text.decode()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"corpus: example {index} ({source.describe(index)}) is not UTF-8: {error}", code="source-format"
                ) from error
