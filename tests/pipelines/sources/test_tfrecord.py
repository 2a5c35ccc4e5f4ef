"""The tfrecord source on real files: exact order, side-car index, damage at every single byte.

A long file: reading, index and parsing of one format.
"""

import gzip
import os
import pty
import re
import stat
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, source_error, sources
from tftoolkit.pipelines.sources import tfrecord_index
from tftoolkit.pipelines.sources.files import INDEX_SUFFIX

RECORDS = [bytes([65 + i]) * size for i, size in enumerate([0, 1, 7, 30, 3])]
FRAME = 16


def write(path: Path, records: list[bytes]) -> Path:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices written by tests must not fill the user's cache; the host is built already and comes from there."""
    sources.tfrecord(write(tmp_path / "warm-up", [b"x"]))
    monkeypatch.setenv("TFTOOLKIT_CACHE_DIR", str(tmp_path / "cache"))


def everything(source: sources.Source) -> list[bytes]:
    return source.fetch(tf.range(len(source), dtype=tf.int64))["record"].numpy().tolist()


def test_files_follow_one_another_and_any_order_is_exact(tmp_path: Path) -> None:
    files = [write(tmp_path / "a", RECORDS), write(tmp_path / "b", []), write(tmp_path / "c", RECORDS[::-1])]
    source = sources.tfrecord(files)
    expected = RECORDS + RECORDS[::-1]
    assert len(source) == 10
    assert source.element_spec == {"record": tf.TensorSpec([], tf.string)}
    assert everything(source) == expected
    order = np.random.default_rng(0).integers(0, 10, 200)
    assert source.fetch(tf.constant(order))["record"].numpy().tolist() == [expected[i] for i in order]


def test_a_shuffled_pipeline_shows_each_record_once_and_resumes(tmp_path: Path) -> None:
    records = [str(i).encode() for i in range(1000)]
    p = Pipeline(sources.tfrecord([write(tmp_path / "a", records[:300]), write(tmp_path / "b", records[300:])]), seed=3)
    p = p.shuffle().batch(64)
    whole = [batch["record"].numpy().tolist() for batch in p.dataset(epochs=1)]
    flat = [record for batch in whole for record in batch]
    assert sorted(flat) == sorted(records)
    assert flat != records
    assert [batch["record"].numpy().tolist() for batch in p.dataset(start=5, epochs=1)] == whole[5:]


def example(label: int, values: list[float]) -> bytes:
    feature = {
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "values": tf.train.Feature(float_list=tf.train.FloatList(value=values)),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


FEATURES = {"label": tf.io.FixedLenFeature([], tf.int64), "values": tf.io.FixedLenFeature([2], tf.float32)}


def test_features_are_parsed(tmp_path: Path) -> None:
    source = sources.tfrecord(write(tmp_path / "a", [example(i, [i, -i]) for i in range(20)]), FEATURES)
    assert source.element_spec["values"] == tf.TensorSpec([2], tf.float32)
    batch = next(iter(Pipeline(source).batch(20)))
    assert batch["label"].numpy().tolist() == list(range(20))
    assert batch["values"].numpy().tolist() == [[i, -i] for i in range(20)]


def test_an_example_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [example(0, [1, 2]), example(1, [1, 2, 3])])
    with pytest.raises(
        SourceError, match=rf"^{path}, record 1 at offset \d+, Key: values, .*Number of float values != expected"
    ):
        next(iter(Pipeline(sources.tfrecord(path, FEATURES)).batch(2)))


@pytest.mark.parametrize(
    "first", [example(1, [1]), b"no example", b"\x99", b""], ids=["other features", "text", "a byte", "empty"]
)
def test_features_that_the_first_record_does_not_have_are_refused(tmp_path: Path, first: bytes) -> None:
    with pytest.raises(ValueError, match="features: the first record cannot be parsed with them"):
        sources.tfrecord(write(tmp_path / "a", [first]), FEATURES)


def floats(values: list[float]) -> bytes:
    feature = {"values": tf.train.Feature(float_list=tf.train.FloatList(value=values))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (tf.io.VarLenFeature(tf.float32), [[1, 2], [], [3, 4, 5, 6]]),
        (tf.io.RaggedFeature(tf.float32), [[1, 2], [], [3, 4, 5, 6]]),
        (tf.io.FixedLenSequenceFeature([2], tf.float32, True), [[[1, 2]], [], [[3, 4], [5, 6]]]),
    ],
)
def test_lists_of_any_length_are_ragged(tmp_path: Path, feature: Any, expected: list[Any]) -> None:
    path = write(tmp_path / "a", [floats([1, 2]), floats([]), floats([3, 4, 5, 6])])
    source = sources.tfrecord(path, {"values": feature})
    assert source.element_spec["values"].shape[0] is None
    batch = next(iter(Pipeline(source).batch(3)))
    assert isinstance(batch["values"], tf.RaggedTensor)
    assert batch["values"].to_list() == expected


def test_a_list_that_does_not_fill_its_rows_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [floats([1, 2]), floats([1, 2, 3])])
    source = sources.tfrecord(path, {"values": tf.io.FixedLenSequenceFeature([2], tf.float32, True)})
    with pytest.raises(
        SourceError, match=rf"^{path}, record 1 at offset \d+: feature 'values' does not fill whole rows"
    ):
        next(iter(Pipeline(source).batch(2)))


NO_EXAMPLES = [b"no example", b"\x99", b"\n\xff\xff", np.random.default_rng(0).bytes(100)]


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(record, id=name, marks=() if name == "a broken field" else pytest.mark.slow)
        for name, record in zip(["text", "a byte", "a broken field", "random"], NO_EXAMPLES, strict=True)
    ],
)
def test_a_record_in_mid_file_that_is_no_example_is_named_and_costs_itself(tmp_path: Path, record: bytes) -> None:
    path = write(tmp_path / "a", [example(0, [1, 2]), record, example(2, [5, 6])])
    offset = len(example(0, [1, 2])) + FRAME
    source = sources.tfrecord(path, FEATURES)
    assert source.describe(1) == f"{path}, record 1 at offset {offset}"
    with pytest.raises(SourceError, match=rf"^{path}, record 1 at offset {offset}: it is no tf.train.Example"):
        next(iter(Pipeline(source).batch(3)))
    p = Pipeline(source, on_error="skip", max_skipped=0.5).batch(3)
    assert next(iter(p))["label"].numpy().tolist() == [0, 2]


def test_a_damaged_length_field_does_not_hide_the_records_behind(tmp_path: Path) -> None:
    """Any number of its bytes, several fields at once, and a record that holds the bytes of other records."""
    records = [b"first", write(tmp_path / "inner", RECORDS * 3).read_bytes(), b"third", b"x" * 300, b"last"]
    path = write(tmp_path / "a", records)
    content = path.read_bytes()
    offsets = np.cumsum([0] + [len(record) + FRAME for record in records])
    rng = np.random.default_rng(0)
    for bad in ([0], [1], [3], [0, 2], [1, 4], [0, 1, 2]):
        damaged = bytearray(content)
        for number in bad:
            size = 12 if len(bad) == 1 else 1
            start = int(offsets[number]) + (0 if size == 12 else int(rng.integers(0, 12)))
            damaged[start : start + size] = bytes(255 - byte for byte in damaged[start : start + size])
        path.write_bytes(damaged)
        source = sources.tfrecord(path)
        assert len(source) == len(records), bad
        for i, record in enumerate(records):
            if i in bad:
                with pytest.raises(tf.errors.OpError) as caught:
                    source.fetch(tf.constant([i], tf.int64))
                assert f"{path}, record {i} at offset {offsets[i]}: " in str(source_error(caught.value))
            else:
                assert source.fetch(tf.constant([i], tf.int64))["record"].numpy().tolist() == [record]


def test_where_the_way_behind_the_damage_is_lost_the_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", RECORDS)
    content = path.read_bytes()
    path.write_bytes(content[:-19] + bytes(19))  # all of the last record: nothing tells how many there were
    with pytest.raises(SourceError, match=rf"^{path}, record 4 at offset 102: it is damaged"):
        sources.tfrecord(path)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_byte_is_found_and_only_its_record_is_named(tmp_path: Path, step: int) -> None:
    """No byte of a file is without a checksum, and no damage ever changes or hides another record."""
    path = write(tmp_path / "a", RECORDS)
    content = path.read_bytes()
    offsets = np.cumsum([0] + [len(record) + FRAME for record in RECORDS])
    for position in range(0, len(content), step):
        number = int(np.searchsorted(offsets, position, side="right")) - 1
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        named = rf"^{path}, record {number} at offset {offsets[number]}: it is damaged"
        source = sources.tfrecord(path)
        assert len(source) == len(RECORDS)
        for i, record in enumerate(RECORDS):
            if i == number:
                with pytest.raises(tf.errors.DataLossError) as caught:
                    source.fetch(tf.constant([i], tf.int64))
                assert re.match(named, str(source_error(caught.value)))
            else:
                assert source.fetch(tf.constant([i], tf.int64))["record"].numpy().tolist() == [record]


def test_damage_stops_a_pipeline_at_its_batch(tmp_path: Path) -> None:
    path = write(tmp_path / "a", RECORDS)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the last byte of data
    path.write_bytes(content)
    p = Pipeline(sources.tfrecord(path)).batch(2)
    batches = iter(p)
    delivered = [next(batches)["record"].numpy().tolist() for _ in range(2)]
    assert delivered == [RECORDS[:2], RECORDS[2:4]]
    with pytest.raises(SourceError, match=rf"^{path}, record 4 at offset 102: it is damaged"):
        next(batches)
    assert p.position == 2


def test_the_files_end_is_checked_at_every_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a", RECORDS)
    content = path.read_bytes()
    ends = np.cumsum([0] + [len(record) + FRAME for record in RECORDS])
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        if size in ends:
            assert everything(sources.tfrecord(path)) == RECORDS[: int(np.searchsorted(ends, size))]
        else:
            with pytest.raises(SourceError, match="goes beyond the file's end at"):
                sources.tfrecord(path)


def test_the_index_is_kept_beside_the_file_and_renewed_with_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a", RECORDS)
    sources.tfrecord(path)
    index = tmp_path / f"a{INDEX_SUFFIX}"
    made = index.stat().st_mtime_ns
    sources.tfrecord(path)
    assert index.stat().st_mtime_ns == made
    write(path, RECORDS[1:])
    assert everything(sources.tfrecord(path)) == RECORDS[1:]
    write(path, [RECORDS[1][:0], *RECORDS[2:]])  # other content
    swapped = [RECORDS[3], RECORDS[2]]  # and now the same size, so that only the time tells
    write(path, swapped[::-1])
    sources.tfrecord(path)
    before = path.stat()
    write(path, swapped)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    assert everything(sources.tfrecord(path)) == swapped
    before = path.stat()  # another size, while the time is the same
    write(path, [*swapped, b"more"])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert everything(sources.tfrecord(path)) == [*swapped, b"more"]


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-30], lambda content: b"x" * 500])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage) -> None:
    path = write(tmp_path / "a", RECORDS)
    sources.tfrecord(path)
    index = tmp_path / f"a{INDEX_SUFFIX}"
    index.write_bytes(damage(index.read_bytes()))
    assert everything(sources.tfrecord(path)) == RECORDS
    assert len(np.load(index)["lengths"]) == len(RECORDS)


def test_an_index_of_another_file_gives_no_wrong_record(tmp_path: Path) -> None:
    """The length fields are compared as well: even a forged index cannot make a record start or end elsewhere."""
    path = write(tmp_path / "a", [b"12345", b"123"])
    sources.tfrecord(path)
    index = tmp_path / f"a{INDEX_SUFFIX}"
    with np.load(index) as stored:
        stamp = stored["stamp"]
    np.savez(index, stamp=stamp, lengths=np.array([3, 5]))
    with pytest.raises(SourceError, match="record 0 at offset 0: it has 5 bytes of data, not 3"):
        next(iter(Pipeline(sources.tfrecord(path)).batch(1)))


def test_the_cache_holds_the_index_where_the_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", RECORDS)
    write_index = tfrecord_index._write_index  # root may write everywhere, so read-only is said here

    def beside_fails(place: Path, *rest: np.ndarray) -> bool:
        return place.parent != tmp_path and write_index(place, *rest)

    monkeypatch.setattr(tfrecord_index, "_write_index", beside_fails)
    assert everything(sources.tfrecord(path)) == RECORDS
    [index] = (tmp_path / "cache" / "tfrecord").iterdir()
    assert stat.S_IMODE(index.parent.stat().st_mode) == 0o700
    made = index.stat().st_mtime_ns
    assert everything(sources.tfrecord(path)) == RECORDS
    assert index.stat().st_mtime_ns == made


@pytest.mark.slow
def test_indexing_a_long_file_shows_on_a_terminal_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file, so it is the records that count; and a disk on which each part of them takes a tenth of a second."""
    path = write(tmp_path / "long", [b"x" * 10] * 20 * tfrecord_index._AT_ONCE)
    index_records = tfrecord_index.index_records
    starts = []

    def slowly(path: str, offset: int, *rest: int) -> tf.Tensor:
        time.sleep(0.1)
        starts.append(offset)
        return index_records(path, offset, *rest)

    monkeypatch.setattr(tfrecord_index, "index_records", slowly)
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with open(terminal, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)

        def shown() -> str:
            stderr.write("|")
            stderr.flush()
            text = ""
            while not text.endswith("|"):
                text += os.read(screen, 1 << 16).decode(errors="replace")
            return text

        assert len(sources.tfrecord(path)) == 20 * tfrecord_index._AT_ONCE
        percent = [int(one) for one in re.findall(r"indexing TFRecord files: +(\d+)%", shown())]
        assert percent == sorted(percent)
        assert any(0 < one < 100 for one in percent)
        assert percent[-1] == 100
        parts = len(starts)
        sources.tfrecord(path)
        assert len(starts) == parts, "with an index nothing is read"
        assert shown() == "|", "quick work shows no bar"
    os.close(screen)


def test_a_file_that_vanishes_in_the_middle_of_a_run_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "a", RECORDS)
    p = Pipeline(sources.tfrecord(path)).batch(2)
    path.rename(tmp_path / "away")
    with pytest.raises(SourceError, match=f"cannot open {path}: .*No such file"):
        next(iter(p))
    assert p.position == 0
    (tmp_path / "away").rename(path)
    assert next(iter(p))["record"].numpy().tolist() == RECORDS[:2]


def test_states_name_the_files(tmp_path: Path) -> None:
    one, other = (Pipeline(sources.tfrecord(write(tmp_path / name, RECORDS))).batch(2) for name in "ab")
    with pytest.raises(
        ValueError, match=r"source.files.a: saved 121, this pipeline 'nothing'; source.files.b: saved 'nothing'"
    ):
        other.restore(one.state())


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a", RECORDS)
    with pytest.raises(ValueError, match="files: the list is empty"):
        sources.tfrecord([])
    with pytest.raises(ValueError, match="files: there is no record in"):
        sources.tfrecord(write(tmp_path / "empty", []))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing"):
        sources.tfrecord([path, tmp_path / "nothing"])
    with pytest.raises(TypeError, match=r"features\['x'\]: expected a tf.io.FixedLenFeature"):
        sources.tfrecord(path, {"x": tf.io.SparseFeature("i", "v", tf.int64, 3)})
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(SourceError, match=r"record 0 at offset 0.*It is compressed: unpack it"):
        sources.tfrecord(packed)
