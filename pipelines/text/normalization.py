"""Normalisation of text."""

from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.source import Example

_FORMS = ("NFC", "NFKC", "NFD", "NFKD")


def library() -> Any:
    """The module ``tokenizers``, which is optional."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("text stages need the library tokenizers: pip install 'tftoolkit[text]'") from error
    return tokenizers


def normalizer(form: str = "NFC", *, lowercase: bool = False, collapse_whitespace: bool = False) -> Any:
    """A ``tokenizers`` normalizer, for training a tokeniser that shall normalise by itself.

    Args:
      form: the Unicode normalisation form (Unicode Standard Annex 15): "NFC", "NFKC", "NFD" or "NFKD".
      lowercase: by Unicode's rules for each character.
      collapse_whitespace: each run of white space becomes one space; none is left at the ends.

    Raises:
      ValueError: an unknown form.
      ImportError: ``tokenizers`` is not installed.
    """
    if form not in _FORMS:
        raise ValueError(f"form={form!r}: expected one of {', '.join(_FORMS)}")
    normalizers = library().normalizers
    steps = [getattr(normalizers, form)()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    if collapse_whitespace:
        steps += [normalizers.Replace(library().Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence(steps)


def normalize(form: str = "NFC", *, lowercase: bool = False, collapse_whitespace: bool = False) -> Vectorized:
    """Normalises the feature "text" (string, UTF-8): a stage for ``Pipeline.map``.

    Args:
      form, lowercase, collapse_whitespace: as of ``normalizer``.

    Raises:
      ValueError, ImportError: see ``normalizer``; the text is missing or no string. While iterating, as an error of
        TensorFlow: a text is not UTF-8.
    """
    backend = normalizer(form, lowercase=lowercase, collapse_whitespace=collapse_whitespace)

    def over_array(texts: np.ndarray) -> np.ndarray:
        return np.array([backend.normalize_str(text.decode()).encode() for text in texts], object)

    def over_rows(rows: Example) -> Example:
        texts = text_of("normalize", rows)
        normal = tf.numpy_function(over_array, [texts], tf.string, stateful=False)
        return {**rows, "text": tf.ensure_shape(normal, texts.shape)}

    options = f"{form}, lowercase={bool(lowercase)}, collapse_whitespace={bool(collapse_whitespace)}"
    return Vectorized(f"normalize({options})", over_rows)


def text_of(stage: str, rows: Example) -> tf.Tensor:
    """The feature "text", checked to be one string per example."""
    if "text" not in rows:
        raise ValueError(f"{stage}: the example has no feature 'text', only {sorted(rows)}")
    texts = rows["text"]
    if texts.dtype != tf.string or texts.shape.rank != 1:
        raise ValueError(f"{stage}: 'text' must be a string, got {texts.dtype.name}{texts.shape[1:]}")
    return texts
