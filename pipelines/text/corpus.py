"""A corpus as a token file."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sized

import numpy as np

from tftoolkit.pipelines.progress import progress
from tftoolkit.pipelines.sources.source import Source
from tftoolkit.pipelines.sources.token_file import TokenFile, write_token_file
from tftoolkit.pipelines.text.texts import TEXTS_AT_ONCE, texts_of
from tftoolkit.pipelines.text.tokenizer import Tokenizer


def write_tokens(
    corpus: Iterable[str] | Source,
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    end_of_document: str | None = None,
) -> TokenFile:
    """Tokenises a corpus into a token file, with a progress bar; the file appears complete or not at all.

    The format is described in ``text/token_file.py``; ``sources.tokens`` and ``sources.token_windows`` read it.

    Args:
      corpus: texts, or a source with a feature "text"; each text is a document.
      path: where to write; a file that is there is replaced.
      tokenizer: trained or loaded.
      end_of_document: a special token of the tokeniser to be added to every document, so that a model sees in windows
        where a document ends.

    Raises:
      TypeError, ValueError: not such arguments, or a text that is no Unicode text.
      SourceError: the corpus cannot be read, or the file cannot be written.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"tokenizer: expected a text.Tokenizer, got {tokenizer!r}")
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
            while some := list(itertools.islice(texts, TEXTS_AT_ONCE)):
                for tokens in tokenizer.encode_batch(some):
                    yield np.append(tokens, np.array(end, np.int32))
                bar.update(len(some))

    return write_token_file(path, documents(), tokenizer.vocabulary_size, tokenizer.fingerprint)
