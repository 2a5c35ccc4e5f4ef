"""The array_record source: any order, damage, features."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from array_record.python import array_record_module

from tftoolkit.pipelines import Pipeline, SourceError, sources

RECORDS = [bytes([65 + i]) * size for i, size in enumerate([0, 1, 700, 30, 3, 5000])]


def write(path: Path, records: list[bytes]) -> Path:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def everything(source: sources.Source) -> list[bytes]:
    return source.fetch(tf.range(len(source), dtype=tf.int64))["record"].numpy().tolist()


def test_files_follow_one_another_and_any_order_is_exact(tmp_path: Path) -> None:
    files = [write(tmp_path / "a", RECORDS), write(tmp_path / "b", RECORDS[::-1])]
    source = sources.array_record(files)
    expected = RECORDS + RECORDS[::-1]
    assert everything(source) == expected
    order = np.random.default_rng(0).integers(0, 12, 100)
    assert source.fetch(tf.constant(order))["record"].numpy().tolist() == [expected[i] for i in order]
    assert source.describe(7) == f"{files[1]}, record 1"
    p = Pipeline(source, seed=1).shuffle().batch(5)
    whole = [batch["record"].numpy().tolist() for batch in p.dataset(epochs=2)]
    assert [batch["record"].numpy().tolist() for batch in p.dataset(2, epochs=2)] == whole[2:]


def test_the_bad_record_of_a_batch_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [os.urandom(50) for _ in range(20)])
    good = everything(sources.array_record(path))
    content = bytearray(path.read_bytes())
    content[content.index(good[7]) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"^{path}, record 7: Corrupted"):
        next(iter(Pipeline(sources.array_record(path)).batch(20)))
    p = Pipeline(sources.array_record(path), on_error="skip", max_skipped=0.1).batch(20)
    assert next(iter(p))["record"].numpy().tolist() == good[:7] + good[8:]


def test_features_are_parsed_and_errors_named(tmp_path: Path) -> None:
    def example(value: int) -> bytes:
        feature = {"n": tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))}
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    path = write(tmp_path / "a", [example(3), b"no example", example(5)])
    source = sources.array_record(path, {"n": tf.io.FixedLenFeature([], tf.int64)})
    assert source.fetch(tf.constant([2, 0], tf.int64))["n"].numpy().tolist() == [5, 3]
    with pytest.raises(SourceError, match=f"^{path}, record 1: it is no tf.train.Example"):
        next(iter(Pipeline(source).batch(3)))


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content, error, text in (
        (b"", (SourceError, ValueError), "is no ArrayRecord file|there is no record in"),
        (b"no array record" * 100, SourceError, "is no ArrayRecord file"),
    ):
        path.write_bytes(content)
        with pytest.raises(error, match=text):
            sources.array_record(path)
    write(path, RECORDS)
    source = sources.array_record(path)
    path.unlink()
    with pytest.raises(SourceError, match=f"{path} cannot be read"):
        source.fetch(tf.constant([0], tf.int64))
