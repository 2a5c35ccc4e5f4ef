"""A source over a prepared TFDS data set (https://www.tensorflow.org/datasets), TFRecord or ArrayRecord."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets
from google.protobuf import json_format

from tftoolkit.pipelines.datasets import digits
from tftoolkit.pipelines.errors import SourceError, message_of
from tftoolkit.pipelines.sources.array_source import ArraySource, ragged
from tftoolkit.pipelines.sources.rows import map_rows
from tftoolkit.pipelines.sources.source import Example, Source, Spec, fetch_in_python, varies
from tftoolkit.pipelines.sources.tfds_features import Selection
from tftoolkit.pipelines.sources.tfrecord_source import TFRecordSource

FileFormat = tensorflow_datasets.core.FileFormat

MAX_BYTES_IN_MEMORY = 1 << 30


def tfds(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    features: Sequence[str] | None = None,
) -> Source:
    """A source over one split of a prepared TFDS data set; nothing is ever downloaded.

    A split of up to 1 GiB when decoded is decoded once into memory. A larger one is read and decoded record by record,
    from TFRecord (through an index, see ``tfrecord``) or ArrayRecord files. Pictures without a fixed size stay encoded:
    a string, for ``pipelines.image.decode``. Features within others have names such as "objects/bbox".

    Args:
      name: as in TFDS, ``"name"``, ``"name/config"`` or ``"name:1.0.0"``. "digits" is tftoolkit's own and prepared
        on first use from the copy in scikit-learn.
      split: as in TFDS: ``"train"``, ``"test"``, ``"train[:90%]"``, ``"train+test"``, …
      data_dir: where TFDS data sets lie; default: the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets.
      features: names of those to read, in this order; that of a feature with others in it stands for all of them.
        Default: all.

    Raises:
      TypeError, ValueError: unknown name, split or features, features with more than their first dimension unknown, or
        pictures of float32 without a fixed size.
      FileNotFoundError: the data set is not prepared.
      SourceError: its files are incomplete, damaged or cannot be written.
    """
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    builder = _builder(name, folder)
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"split={split!r}: {name} has the splits {known}, or parts such as 'train[:90%]'") from error
    missing = [str(path) for path in info.filepaths if not path.exists()]
    if missing:
        raise _unreadable(builder.data_path, f"{missing[0]} is missing")
    shards = [str(part.filename) for part in info.file_instructions if part.examples_in_shard]
    empty = [shard for shard in shards if tf.io.gfile.stat(shard).length == 0]
    if empty:
        raise _unreadable(builder.data_path, f"{empty[0]} is empty")
    selection = Selection(builder, features)
    identity = {"kind": "tfds", "name": builder.info.full_name, "split": split, **selection.identity()}
    if max(_decoded_bytes(selection.element_spec, info.num_examples), info.num_bytes) <= MAX_BYTES_IN_MEMORY:
        return ArraySource(_decode_all(builder, split, selection, info.num_examples), identity)
    if builder.info.file_format == FileFormat.ARRAY_RECORD:
        return ArrayRecordSplit(builder, split, selection, identity)
    if builder.info.file_format == FileFormat.TFRECORD:
        return TFRecordSplit(builder, split, selection, identity)
    raise ValueError(
        f"{builder.info.full_name}: it is larger than {MAX_BYTES_IN_MEMORY >> 20} MiB and its files cannot be read in "
        f"random order; prepare it as ArrayRecord: tfds build {builder.name} --file_format=array_record"
    )


class ArrayRecordSplit:
    """The examples of an ArrayRecord split, read and decoded (in Python, by TFDS) when they are fetched."""

    def __init__(self, builder: Any, split: str, selection: Selection, identity: dict[str, Any]) -> None:
        self._folder = builder.data_path
        self._identity = identity
        self._selection = selection
        self.element_spec = selection.element_spec
        self._records = builder.as_data_source(split=split, decoders=selection.decoders)

    def __len__(self) -> int:
        return len(self._records)

    def fetch(self, indices: tf.Tensor) -> Example:
        return fetch_in_python(self._read, indices, self.element_spec)

    def fingerprint(self) -> dict[str, Any]:
        return {**self._identity, "length": len(self)}

    def describe(self, index: int) -> str:
        return f"{self._folder}, {self._identity['split']}, example {index}"

    def _read(self, indices: np.ndarray) -> list[list[Any]]:
        try:
            rows = [self._selection.flat(row) for row in self._records.__getitems__(indices.tolist())]
        except Exception as error:  # array_record raises bare RuntimeError for whatever is wrong with a file
            raise _unreadable(self._folder, message_of(error)) from error
        return [[row[name] for row in rows] for name in self.element_spec]


class TFRecordSplit:
    """The examples of a TFRecord split, read through an index and decoded (by TFDS, as graph) when they are fetched."""

    def __init__(self, builder: Any, split: str, selection: Selection, identity: dict[str, Any]) -> None:
        self._selection = selection
        self._identity = identity
        self.element_spec = selection.element_spec
        parts = builder.info.splits[split].file_instructions
        self._files = TFRecordSource([str(part.filename) for part in parts], None)
        sizes = [part.examples_in_shard for part in parts]
        if len(self._files) != sum(sizes):
            raise _unreadable(builder.data_path, f"{len(self._files)} of {sum(sizes)} examples were found")
        self._length = sum(part.take for part in parts)
        # Of each file some records belong to the split, one behind the other.
        self._ends = tf.constant(np.cumsum([part.take for part in parts]), tf.int64)
        self._shifts = tf.constant(
            np.cumsum([0, *sizes[:-1]])
            + [part.skip for part in parts]
            - np.cumsum([0, *(part.take for part in parts[:-1])]),
            tf.int64,
        )

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: tf.Tensor) -> Example:
        records = self._files.fetch(self._record(indices))

        def decode(example: Example, _: tf.Tensor) -> Example:
            return self._selection.decode(example["record"])

        return map_rows(decode, records, indices, self._files.element_spec, self.element_spec)

    def fingerprint(self) -> dict[str, Any]:
        return {**self._identity, "length": len(self)}

    def describe(self, index: int) -> str:
        return self._files.describe(int(self._record(tf.constant([index], tf.int64))[0]))

    def _record(self, indices: tf.Tensor) -> tf.Tensor:
        return indices + tf.gather(self._shifts, tf.searchsorted(self._ends, indices, side="right"))


def _builder(name: str, folder: Path) -> Any:
    """The TFDS builder of a data set that lies prepared below ``folder``."""
    base = re.split("[/:]", name)[0]
    prepared = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    known = {*tensorflow_datasets.list_builders(with_community_datasets=False), *prepared}
    if base not in known:
        near = difflib.get_close_matches(base, known)
        hint = f"the nearest names are {', '.join(near)}" if near else "no name is near; tftoolkit's own is 'digits'"
        raise ValueError(f"name={name!r}: TFDS knows no such data set, and none lies in {folder}; {hint}")
    try:
        if base == digits.Digits.name:
            digits.prepare(folder)
        builder = tensorflow_datasets.builder(name, data_dir=folder)
    except SourceError:
        raise
    except (json_format.ParseError, OSError) as error:
        raise _unreadable(folder / base, str(error)) from error
    except Exception as error:  # an unknown version or config: AssertionError, DatasetNotFoundError, …
        raise ValueError(f"name={name!r}: {error}") from error
    if not builder.data_path.exists():
        raise FileNotFoundError(
            f"name={name!r}: not prepared in {folder}, and nothing is downloaded here; run "
            f"'tfds build {name} --data_dir={folder}' first, or name another data_dir"
        )
    if not (builder.data_path / "dataset_info.json").exists():
        raise _unreadable(builder.data_path, "dataset_info.json is missing")
    return builder


def _decoded_bytes(spec: Spec, length: int) -> int:
    """Strings and features of varying length count nothing, since their length is not known."""
    return length * sum(one.shape.num_elements() * one.dtype.size for one in spec.values() if not varies(one))


def _decode_all(builder: Any, split: str, selection: Selection, length: int) -> dict[str, Any]:
    spec, decoders = selection.element_spec, selection.decoders
    if length == 0:
        raise ValueError(f"split={split!r}: it has no examples")
    try:
        if builder.info.file_format == FileFormat.ARRAY_RECORD:
            rows = [selection.flat(row) for row in builder.as_data_source(split=split, decoders=decoders)]
            columns = {name: _stack([row[name] for row in rows], one) for name, one in spec.items()}
        else:
            # One file after the other, so that the order is that of the files and never of the threads.
            read_config = tensorflow_datasets.ReadConfig(interleave_cycle_length=1, try_autocache=False)
            examples = builder.as_dataset(split=split, read_config=read_config, decoders=decoders).map(selection.flat)
            any_varies = any(varies(one) for one in spec.values())
            columns = next(iter(examples.ragged_batch(length) if any_varies else examples.batch(length)))
    except (tf.errors.OpError, RuntimeError, StopIteration) as error:
        raise _unreadable(builder.data_path, message_of(error)) from error
    read = int(next(iter(columns.values())).shape[0])
    if read != length:
        raise _unreadable(builder.data_path, f"{read} of {length} examples of {split} were found")
    return columns


def _stack(values: list[Any], spec: tf.TensorSpec) -> Any:
    dtype = object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
    return ragged(values, dtype) if varies(spec) else np.asarray(values, dtype).reshape([len(values), *spec.shape])


def _unreadable(folder: Any, reason: str) -> SourceError:
    return SourceError(
        f"the TFDS data set in {folder} cannot be read: {reason}; bring the folder back, or delete what is left of it "
        "and prepare the data set again"
    )
