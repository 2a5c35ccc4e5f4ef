"""Texts of a corpus, and the corpus as a token file."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.progress import progress
from tftoolkit.pipelines.sources.source import Source
from tftoolkit.pipelines.text.token_file import TokenFile, write_token_file

if TYPE_CHECKING:
    from tftoolkit.pipelines.text.tokenizer import Tokenizer

_TEXTS_AT_ONCE = 256


def write_tokens(
    corpus: Iterable[str] | Source,
    path: str | os.PathLike[str],
    tokenizer: "Tokenizer",
    end_of_document: str | None = None,
) -> TokenFile:
    """Tokenises a corpus into a token file, with a progress bar; the file appears complete or not at all.

    The format is described in ``text/token_file.py``; ``sources.tokens`` and ``sources.token_windows`` read it.

    Args:
      corpus: texts, or a source with a feature "text"; each text is a document.
      path: where to write; a file that is there is replaced.
      end_of_document: a special token of the tokeniser to be added to every document, so that a model sees in windows
        where a document ends.

    Raises:
      TypeError, ValueError: not such arguments, or a text that is no Unicode text.
      SourceError: the corpus cannot be read, or the file cannot be written.
    """
    if end_of_document is not None and end_of_document not in tokenizer.special_tokens:
        raise ValueError(
            f"end_of_document={end_of_document!r}: no special token of this tokeniser, which has "
            f"{sorted(tokenizer.special_tokens)}"
        )
    end = [] if end_of_document is None else [tokenizer.special_tokens[end_of_document]]
    total = len(corpus) if isinstance(corpus, Sized) else 0  # without a total the bar counts, but has no ETA

    def documents() -> Iterator[np.ndarray]:
        with progress("tokenising", total, " documents") as bar:
            texts = texts_of(corpus)
            while some := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
                for tokens in tokenizer.encode_batch(some):
                    yield np.append(tokens, np.array(end, np.int32))
                bar.update(len(some))

    return write_token_file(path, documents(), tokenizer.vocabulary_size, tokenizer.fingerprint)


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
    for start in range(0, len(source), _TEXTS_AT_ONCE):
        indices = tf.range(start, min(start + _TEXTS_AT_ONCE, len(source)), dtype=tf.int64)
        for index, text in enumerate(source.fetch(indices)["text"].numpy(), start):
            try:
                yield text.decode()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"corpus: example {index} ({source.describe(index)}) is not UTF-8: {error}"
                ) from error
