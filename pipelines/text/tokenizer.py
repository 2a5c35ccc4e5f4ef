"""Tokenisers: text to token ids and back, by the library ``tokenizers``."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.source import Example, Source
from tftoolkit.pipelines.text.normalization import library, text_of
from tftoolkit.pipelines.text.texts import texts_of


class Tokenizer:
    """Turns text into token ids and back; made by one of the functions below, or ``Tokenizer.load``.

    A special token never comes out of text: where its name stands in a text, it is encoded letter by letter.

    Attributes:
      vocabulary_size: ids are 0 … vocabulary_size - 1, special tokens included.
      special_tokens: name -> id.
      fingerprint: 16 hexadecimal digits that change with the tokeniser; stands in token files and states.
      backend: the ``tokenizers.Tokenizer``.
    """

    def __init__(self, backend: Any) -> None:
        backend.encode_special_tokens = True  # not saved in the file
        self.backend = backend
        self.vocabulary_size: int = backend.get_vocab_size()
        self.special_tokens: dict[str, int] = {
            token.content: number for number, token in backend.get_added_tokens_decoder().items() if token.special
        }
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()[:16]

    def encode(self, text: str) -> np.ndarray:
        """The tokens of ``text``, int32[tokens].

        Raises:
          TypeError, ValueError: no string, or one with lone surrogates, which have no UTF-8 form.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of each text, on all cores.

        Raises TypeError and ValueError as that does, for the first such text.
        """
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"text: expected a string, got {text!r}")
        try:
            encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise ValueError("text: it has lone surrogates, so it is no Unicode text") from error
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, tokens: Sequence[int] | np.ndarray | tf.Tensor) -> str:
        """The text of ``tokens``, a sequence of ids; special tokens come out by name.

        Of byte and BPE tokenisers without a normalizer, ``decode(encode(text)) == text``. Bytes that are no UTF-8, as
        where a window begins within a character, come out as U+FFFD.

        Raises:
          ValueError: not a sequence of ids, or one that is not in the vocabulary.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"tokens: expected a sequence of integers, got {ids.dtype}{list(ids.shape)}")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary_size:
            raise ValueError(f"tokens: ids {ids.min()} to {ids.max()}; they must be in [0, {self.vocabulary_size})")
        return str(self.backend.decode(ids.tolist(), skip_special_tokens=False))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON format of ``tokenizers``, which that library loads as well; replaces the file as a whole."""
        path = Path(path).expanduser().absolute()
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            written = Path(folder) / path.name
            written.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
            written.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads what ``save`` wrote, or any file in the JSON format of ``tokenizers``.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no tokeniser.
          ImportError: ``tokenizers`` is not installed.
        """
        read = library().Tokenizer.from_str
        data = Path(path).expanduser().read_bytes()
        try:
            return cls(read(data.decode()))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"path: {path} is no tokeniser in the JSON format of tokenizers: {error}") from error


def byte_tokenizer(special_tokens: Sequence[str] = (), normalizer: Any = None) -> Tokenizer:
    """Every byte of the UTF-8 text is the token of its value; the special tokens have the ids from 256 on.

    Args:
      special_tokens: their names, e.g. ``["<pad>", "<end>"]``.
      normalizer: see ``text.normalizer``; applied before encoding.

    Raises:
      TypeError, ValueError: ``special_tokens`` is no list of names, or a name appears twice.
      ImportError: ``tokenizers`` is not installed.
    """
    tokenizers = library()
    names = {letter: byte for byte, letter in enumerate(_byte_letters())}
    backend = _byte_level(tokenizers.models.BPE(names, []), normalizer)
    backend.add_special_tokens(_checked_names(special_tokens))
    return Tokenizer(backend)


def train_bpe_tokenizer(
    corpus: Iterable[str] | Source, vocabulary_size: int, special_tokens: Sequence[str] = (), normalizer: Any = None
) -> Tokenizer:
    """Byte-level byte-pair encoding (Sennrich et al., 2016; Radford et al., 2019) learned from a corpus.

    Any text can be encoded, since all single bytes are in the vocabulary. The special tokens have the ids from 0 on.

    Args:
      corpus: texts, or a source with a feature "text".
      vocabulary_size: at least 256 and the special tokens; a small corpus may yield fewer.
      special_tokens, normalizer: see ``byte_tokenizer``.

    Raises:
      TypeError, ValueError: not such arguments.
      SourceError: an example of the source cannot be read, or is not UTF-8.
      ImportError: ``tokenizers`` is not installed.
    """
    tokenizers = library()
    names = _checked_names(special_tokens)
    if vocabulary_size < 256 + len(names):
        raise ValueError(f"vocabulary_size={vocabulary_size}: must be at least {256 + len(names)}")
    backend = _byte_level(tokenizers.models.BPE(), normalizer)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=names,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(texts_of(corpus), trainer)
    return Tokenizer(backend)


def train_word_tokenizer(
    corpus: Iterable[str] | Source,
    vocabulary_size: int,
    special_tokens: Sequence[str] = (),
    normalizer: Any = None,
    unknown: str = "<unk>",
) -> Tokenizer:
    r"""The most frequent words and runs of punctuation (``\w+|[^\w\s]+``) of a corpus; white space is not kept.

    ``unknown`` has id 0 and stands for every other word; the special tokens follow. For the other arguments see
    ``train_bpe_tokenizer``.

    Raises:
      TypeError, ValueError, SourceError, ImportError: as of ``train_bpe_tokenizer``; a vocabulary needs no bytes here.
    """
    tokenizers = library()
    names = _checked_names([unknown, *special_tokens])
    if vocabulary_size < len(names):
        raise ValueError(f"vocabulary_size={vocabulary_size}: must be at least {len(names)}")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=unknown))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = tokenizers.trainers.WordLevelTrainer(
        vocab_size=vocabulary_size, special_tokens=names, show_progress=sys.stderr.isatty()
    )
    backend.train_from_iterator(texts_of(corpus), trainer)
    return Tokenizer(backend)


def tokenize(tokenizer: Tokenizer) -> Vectorized:
    """Replaces the feature "text" (string, UTF-8) by "tokens" (int32[None]): a stage for ``Pipeline.map``.

    For a corpus that is read more than once, ``write_tokens`` does this once and for all.

    Args:
      tokenizer: trained or loaded.

    Raises:
      TypeError: it is none.
      ValueError: the text is missing or no string. While iterating, as an error of TensorFlow: a text is not UTF-8.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"tokenizer: expected a text.Tokenizer, got {tokenizer!r}")

    def over_array(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        encoded = tokenizer.encode_batch([text.decode() for text in texts])
        return np.concatenate([np.zeros(0, np.int32), *encoded]), np.array([len(one) for one in encoded], np.int64)

    def over_rows(rows: Example) -> Example:
        texts = text_of("tokenize", rows)
        values, lengths = tf.numpy_function(over_array, [texts], [tf.int32, tf.int64], stateful=False)
        values, lengths = tf.ensure_shape(values, [None]), tf.ensure_shape(lengths, texts.shape)
        rest = {name: value for name, value in rows.items() if name != "text"}
        return {**rest, "tokens": tf.RaggedTensor.from_row_lengths(values, lengths, validate=False)}

    return Vectorized(f"tokenize({tokenizer.fingerprint})", over_rows)


def _byte_level(model: Any, normalizer: Any) -> Any:
    tokenizers = library()
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies: itself if printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _checked_names(names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"special_tokens: expected a list of names, got {names!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"special_tokens: a name appears twice in {list(names)}")
    return list(names)
