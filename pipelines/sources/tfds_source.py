"""A source over a prepared TFDS data set (https://www.tensorflow.org/datasets), TFRecord or ArrayRecord."""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets
from google.protobuf import json_format

from tftoolkit.pipelines import digits
from tftoolkit.pipelines.errors import SourceError, message_of
from tftoolkit.pipelines.sources.array_source import ArraySource
from tftoolkit.pipelines.sources.source import Example, Source, Spec

MAX_BYTES_IN_MEMORY = 1 << 30


def tfds(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """A source over one split of a prepared TFDS data set; nothing is ever downloaded.

    A split of up to 1 GiB when decoded is decoded once into memory. A larger one is read record by record, which needs
    ArrayRecord files.

    Args:
      name: as in TFDS, ``"name"``, ``"name/config"`` or ``"name:1.0.0"``. "digits" is tftoolkit's own and prepared
        on first use from the copy in scikit-learn.
      split: as in TFDS: ``"train"``, ``"test"``, ``"train[:90%]"``, ``"train+test"``, …
      data_dir: where TFDS data sets lie; default: the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      ValueError: unknown name or split, or features that cannot be stacked into a batch.
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
    spec = _checked_spec(builder)
    identity = {"kind": "tfds", "name": builder.info.full_name, "split": split}
    if _decoded_bytes(spec, info.num_examples) <= MAX_BYTES_IN_MEMORY:
        return ArraySource(_decode_all(builder, split, spec, info.num_examples), identity)
    return RecordSource(builder, split, spec, identity)


class RecordSource:
    """The examples of an ArrayRecord split, read and decoded (in Python, by TFDS) when they are fetched."""

    def __init__(self, builder: Any, split: str, element_spec: Spec, identity: dict[str, Any]) -> None:
        self._folder = builder.data_path
        self._identity = identity
        self.element_spec = element_spec
        try:
            self._records = builder.as_data_source(split=split)
        except NotImplementedError as error:
            raise ValueError(
                f"{builder.info.full_name}: it is larger than {MAX_BYTES_IN_MEMORY >> 20} MiB and its files cannot be "
                "read in random order; prepare it as ArrayRecord: "
                f"tfds build {builder.name} --file_format=array_record"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def fetch(self, indices: tf.Tensor) -> Example:
        dtypes = [spec.dtype for spec in self.element_spec.values()]
        columns = tf.numpy_function(self._read, [indices], dtypes, stateful=False)
        batch = dict(zip(self.element_spec, columns, strict=True))
        return {
            name: tf.ensure_shape(batch[name], indices.shape[:1] + spec.shape)
            for name, spec in self.element_spec.items()
        }

    def fingerprint(self) -> dict[str, Any]:
        return {**self._identity, "length": len(self)}

    def _read(self, indices: np.ndarray) -> list[np.ndarray]:
        try:
            rows = self._records.__getitems__(indices.tolist())
        except Exception as error:  # array_record raises bare RuntimeError for whatever is wrong with a file
            raise _unreadable(self._folder, message_of(error)) from error
        return [_stack([row[name] for row in rows], spec) for name, spec in self.element_spec.items()]


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


def _checked_spec(builder: Any) -> Spec:
    specs = builder.info.features.get_tensor_spec()
    if not isinstance(specs, dict):
        raise ValueError(f"{builder.info.full_name}: its examples are {specs} and not dicts of features")
    for name, spec in specs.items():
        if not isinstance(spec, tf.TensorSpec) or not spec.shape.is_fully_defined():
            raise ValueError(
                f"{builder.info.full_name}: feature {name!r} is {spec}; only dense features of a fixed shape can be "
                "stacked into batches"
            )
    return dict(specs)


def _decoded_bytes(spec: Spec, length: int) -> int:
    """Strings count nothing, since their length is not known."""
    return length * sum(one.shape.num_elements() * one.dtype.size for one in spec.values())


def _decode_all(builder: Any, split: str, spec: Spec, length: int) -> dict[str, Any]:
    if length == 0:
        raise ValueError(f"split={split!r}: it has no examples")
    try:
        if builder.info.file_format == tensorflow_datasets.core.FileFormat.ARRAY_RECORD:
            rows = builder.as_data_source(split=split)
            columns = {name: _stack([row[name] for row in rows], one) for name, one in spec.items()}
        else:
            # One file after the other, so that the order is that of the files and never of the threads.
            read_config = tensorflow_datasets.ReadConfig(interleave_cycle_length=1, try_autocache=False)
            columns = next(iter(builder.as_dataset(split=split, read_config=read_config).batch(length)))
    except (tf.errors.OpError, RuntimeError, StopIteration) as error:
        raise _unreadable(builder.data_path, message_of(error)) from error
    read = len(next(iter(columns.values())))
    if read != length:
        raise _unreadable(builder.data_path, f"{read} of {length} examples of {split} were found")
    return columns


def _stack(values: list[Any], spec: tf.TensorSpec) -> np.ndarray:
    dtype = object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
    return np.asarray(values, dtype).reshape([len(values), *spec.shape])


def _unreadable(folder: Any, reason: str) -> SourceError:
    return SourceError(
        f"the TFDS data set in {folder} cannot be read: {reason}; bring the folder back, or delete what is left of it "
        "and prepare the data set again"
    )
