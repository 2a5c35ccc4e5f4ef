"""Sources over a token file: its documents, or windows cut from the whole corpus."""

import functools
import os
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tftoolkit.custom_ops.engine import tf_host
from tftoolkit.custom_ops.engine.errors import BuildError, LoadError
from tftoolkit.custom_ops.engine.token_reader import read_tokens
from tftoolkit.pipelines.sources.continued_rows import ContinuedRows
from tftoolkit.pipelines.sources.files import need_local
from tftoolkit.pipelines.sources.source import Example, Spec, fetch_in_python
from tftoolkit.pipelines.sources.token_file import BLOCK_BYTES, HEADER_BYTES, TokenFile


def tokens(file: str | os.PathLike[str]) -> "DocumentSource":
    """The documents of a token file (see ``text.write_tokens``): {"tokens": int32[None]}.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file lies in a remote store (``gs://…``).
      SourceError: it is no token file, or a damaged one. While iterating: a document lies in a damaged block.
    """
    need_local("file", file)
    return DocumentSource(TokenFile(file))


def token_windows(
    file: str | os.PathLike[str],
    length: int,
    stride: int | None = None,
    targets: bool = False,
    *,
    continue_rows: int | None = None,
) -> "WindowSource | ContinuedRows":
    """The corpus of a token file, cut into windows over the borders of documents: {"tokens": int32[length]}.

    Window i begins at token i·stride. Tokens at the end that do not fill a window are left out.

    Args:
      file: see ``text.write_tokens``.
      length: tokens per window.
      stride: from the begin of a window to that of the next; default: ``length``, so that windows do not overlap.
      targets: add {"targets": int32[length]}: for each token the one that follows it in the corpus.
      continue_rows: for truncated back-propagation through time: the corpus is laid in so many rows of equal length
        side by side, and row r of each ``.batch(continue_rows)`` goes on where row r of the batch before ended. Adds
        {"continues": bool}: False in an epoch's first batch, where the model's state must be forgotten. Windows that do
        not fill all rows are left out, and nothing may change the order.

    Raises:
      TypeError, ValueError: ``length``, ``stride`` or ``continue_rows`` is no integer ≥ 1, the corpus has no window of
        that length (in each row), or rows that continue would overlap.
      FileNotFoundError, SourceError: see ``tokens``.
    """
    stride = length if stride is None else stride
    for name, value in (
        ("length", length),
        ("stride", stride),
        ("continue_rows", 1 if continue_rows is None else continue_rows),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if continue_rows is not None and stride != length:
        raise ValueError(f"stride={stride}: with continue_rows it must be length={length}, or be left out")
    need_local("file", file)
    windows = WindowSource(TokenFile(file), length, stride, bool(targets))
    return windows if continue_rows is None else ContinuedRows(windows, continue_rows)


class DocumentSource:
    """See ``tokens``."""

    def __init__(self, file: TokenFile) -> None:
        self._file = file
        self.element_spec: Spec = {"tokens": tf.TensorSpec([None], tf.int32)}

    def __len__(self) -> int:
        return len(self._file.offsets) - 1

    def lengths(self, feature: str) -> np.ndarray:
        """Number of tokens of every document, int64[len(self)], without reading them."""
        _check_feature(feature, self.element_spec)
        return np.diff(self._file.offsets)

    def fetch(self, indices: tf.Tensor) -> Example:
        return fetch_in_python(self._read, indices, self.element_spec)

    def _read(self, indices: np.ndarray) -> list[list[np.ndarray]]:
        starts, stops = self._file.offsets[indices], self._file.offsets[indices + 1]
        self._file.check(starts, stops)
        return [[self._file.tokens[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]]

    def fetch_slices(self, indices: tf.Tensor, offsets: tf.Tensor, lengths: tf.Tensor) -> Example:
        """``lengths`` tokens from ``offsets`` on in each document, int64[n]: what packing takes of a long one."""
        tokens = tf.numpy_function(self._read_slices, [indices, offsets, lengths], tf.int32, stateful=False)
        tokens = tf.ensure_shape(tokens, [None])
        return {"tokens": tf.RaggedTensor.from_row_lengths(tokens, lengths, validate=False)}

    def _read_slices(self, indices: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        starts = self._file.offsets[indices] + offsets
        self._file.check(starts, starts + lengths)
        bounds = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
        slices = (self._file.tokens[start:stop] for start, stop in bounds)
        return np.concatenate([np.empty(0, np.int32), *slices], dtype=np.int32)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "tokens", **_identity(self._file), "documents": len(self)}

    def describe(self, index: int) -> str:
        start, stop = self._file.offsets[index : index + 2].tolist()
        return f"{self._file.path.name}, document {index} (tokens {start} to {stop - 1})"


class WindowSource:
    """See ``token_windows``."""

    def __init__(self, file: TokenFile, length: int, stride: int, targets: bool) -> None:
        self._file, self._window, self._stride = file, length, stride
        self._span = length + 1 if targets else length
        self._length = max(0, (len(file.tokens) - self._span) // stride + 1)
        if not self._length:
            raise ValueError(
                f"length={length}: {file.path.name} has only {len(file.tokens)} tokens, one window needs {self._span}"
            )
        names = ["tokens", "targets"] if targets else ["tokens"]
        self.element_spec: Spec = {name: tf.TensorSpec([length], tf.int32) for name in names}
        # A view with one row for every token a window could begin at: taking rows of it copies runs of memory.
        self._windows = np.lib.stride_tricks.sliding_window_view(file.tokens, self._span)

    def __len__(self) -> int:
        return self._length

    def lengths(self, feature: str) -> np.ndarray:
        """Number of tokens of every window, int64[len(self)]: all the same."""
        _check_feature(feature, self.element_spec)
        return np.full(len(self), self._window, np.int64)

    def fetch(self, indices: tf.Tensor) -> Example:
        if _is_compiled():
            file = self._file
            windows = read_tokens(
                str(file.path),
                file.checksums,
                indices * self._stride,
                header_bytes=HEADER_BYTES,
                block_bytes=BLOCK_BYTES,
                item_bytes=file.tokens.itemsize,
                tokens=len(file.tokens),
                length=self._span,
            )
        else:
            windows = tf.numpy_function(self._read, [indices], tf.int32, stateful=False)
        windows = tf.ensure_shape(windows, [*indices.shape[:1], self._span])
        if "targets" not in self.element_spec:
            return {"tokens": windows}
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}

    def _read(self, indices: np.ndarray) -> np.ndarray:
        starts = indices * self._stride
        self._file.check(starts, starts + self._span)
        return self._windows[starts].astype(np.int32)

    def fingerprint(self) -> dict[str, Any]:
        settings = {"length": self._window, "stride": self._stride, "targets": "targets" in self.element_spec}
        return {"kind": "token_windows", **_identity(self._file), **settings}

    def describe(self, index: int) -> str:
        start = index * self._stride
        return f"{self._file.path.name}, window {index} (tokens {start} to {start + self._span - 1})"


@functools.cache
def _is_compiled() -> bool:
    """Whether there is the op that reads windows, or can be; else Python reads them, more slowly."""
    try:
        tf_host.plain_ops()
    except (BuildError, LoadError) as error:
        reason = error.plain.partition("\n")[0]
        logging.warning("tftoolkit: windows of tokens are read in Python, which is much slower: %s", reason)
        return False
    return True


def _identity(file: TokenFile) -> dict[str, Any]:
    return {
        "file": file.path.name,
        "tokens": len(file.tokens),
        "tokenizer": file.tokenizer,
        "crc32": file.checksum,
    }


def _check_feature(feature: str, spec: Spec) -> None:
    if feature not in spec:
        raise ValueError(f"feature={feature!r}: the source has only {sorted(spec)}")
