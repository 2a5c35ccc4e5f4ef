"""The examples of a source as sharded files of records."""

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError, message_of, source_error
from tftoolkit.pipelines.progress import progress
from tftoolkit.pipelines.sources import manifest, tfrecord_index
from tftoolkit.pipelines.sources.example_parser import serialize
from tftoolkit.pipelines.sources.source import Source, Spec

FORMATS = ("tfrecord", "array_record")

_ROWS_AT_ONCE = 256
_BYTES_PER_SHARD = 128 << 20


def write_records(
    source: Source,
    path: str | os.PathLike[str],
    *,
    format: str = "tfrecord",
    shards: int | None = None,
) -> list[str]:
    """See ``pipelines.write``; ``source``: anything with ``element_spec``, ``fetch`` and ``fingerprint``."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    spec = _checked_spec(source.element_spec)
    if shards is not None and (isinstance(shards, bool) or not isinstance(shards, int) or shards < 1):
        raise ValueError(f"shards={shards!r}: expected a positive integer")
    destination = Path(path).expanduser().absolute()
    _check_free(destination)
    records = _records(source, spec)
    first = list(itertools.islice(records, _ROWS_AT_ONCE))
    if shards is None:
        total = sum(map(len, first)) / len(first) * len(source)
        shards = max(1, round(total / _BYTES_PER_SHARD))
    shards = min(shards, len(source))
    names = [f"{destination.name}-{number:05d}-of-{shards:05d}.{format}" for number in range(shards)]
    folder = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}-", suffix=".incomplete"))
    try:
        counts = _write_shards(itertools.chain(first, records), [folder / name for name in names], len(source), format)
        told = manifest.manifest(spec, dict(zip(names, counts, strict=True)), len(source), source.fingerprint())
        (folder / f"{destination.name}{manifest.SUFFIX}").write_text(json.dumps(told, indent=1) + "\n")
        _move(folder, destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [str(destination.with_name(name)) for name in names]


def _checked_spec(spec: Spec) -> Spec:
    for name, one in spec.items():
        if one.shape.rank is None or None in one.shape[1:]:
            raise ValueError(
                f"examples: feature {name!r} is {one.shape}; only the first dimension may vary, so write it encoded "
                "(as tf.io.encode_png) or padded"
            )
    return dict(spec)


def _check_free(destination: Path) -> None:
    if not destination.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {destination.parent}; make it first")
    patterns = [f"-*-of-*.{kind}" for kind in FORMATS]
    existing = [str(file) for pattern in patterns for file in destination.parent.glob(destination.name + pattern)]
    existing += [str(file) for file in destination.parent.glob(destination.name + manifest.SUFFIX)]
    if existing:
        raise FileExistsError(
            f"path: there is already {existing[0]} ({len(existing)} files in all); nothing is overwritten, so remove "
            "them or choose another path"
        )


def _records(source: Any, spec: Spec) -> Iterator[bytes]:
    fetch = tf.function(source.fetch, input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    for start in range(0, len(source), _ROWS_AT_ONCE):
        indices = np.arange(start, min(start + _ROWS_AT_ONCE, len(source)))
        try:
            rows = fetch(tf.constant(indices))
        except tf.errors.OpError as error:
            raise source_error(error) or _named(source, fetch, indices, error) from None
        yield from serialize(rows, spec)


def _named(source: Any, fetch: Any, indices: np.ndarray, error: tf.errors.OpError) -> SourceError:
    """What is wrong with the first of the examples that fails on its own, and its name."""
    for index in indices.tolist():
        try:
            fetch(tf.constant([index], tf.int64))
        except tf.errors.OpError as its_own:
            return SourceError(f"{source.describe(index)}: {message_of(its_own)}", code="source-record")
    return SourceError(message_of(error), code="source-record")


def _write_shards(records: Iterator[bytes], files: list[Path], length: int, kind: str) -> list[int]:
    """Writes equally long runs of records; returns their lengths."""
    bounds = [length * number // len(files) for number in range(len(files) + 1)]
    with progress(f"writing {kind}", length, " examples") as bar:
        for file, (begin, end) in zip(files, itertools.pairwise(bounds), strict=True):
            lengths = []
            writer = None
            for record in itertools.islice(records, end - begin):
                with _failures_told(file):
                    writer = writer or _writer(file, kind)
                    writer.write(record)
                lengths.append(len(record))
                bar.update(1)
            with _failures_told(file):
                writer.close()  # type: ignore[union-attr]  # no file is without a record
                if kind == "tfrecord":
                    tfrecord_index.write_beside(str(file), np.array(lengths, np.int64))
    return [end - begin for begin, end in itertools.pairwise(bounds)]


def _writer(file: Path, kind: str) -> Any:
    if kind == "tfrecord":
        return tf.io.TFRecordWriter(str(file))
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordWriter(str(file), "group_size:1")  # so that damage costs one record


@contextlib.contextmanager
def _failures_told(file: Path) -> Iterator[None]:
    """Both formats' writers have errors of their own for a full disk."""
    try:
        yield
    except (tf.errors.OpError, RuntimeError, OSError) as error:
        written = sum(one.stat().st_size for one in file.parent.iterdir())
        free = shutil.disk_usage(file.parent).free
        raise OSError(
            f"{file.parent.parent} cannot take more than the {written:,} bytes written so far ({message_of(error)}; "
            f"{free:,} bytes are free there); nothing was left behind. Make room, or name another folder"
        ) from error


def _move(folder: Path, destination: Path) -> None:
    """Puts complete files in their place: first the indices, last the manifest."""
    order = sorted(folder.iterdir(), key=lambda file: (file.name.endswith(manifest.SUFFIX), file.name))
    for file in order:
        place = destination.with_name(file.name)
        if place.exists():
            raise FileExistsError(f"path: {place} was written by another process meanwhile; nothing is overwritten")
        file.rename(place)
