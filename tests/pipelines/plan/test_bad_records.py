"""Damaged input: what "raise" says, and that "skip" costs exactly the damaged record, whatever the stages.

A long file: damage of every kind, meeting every stage.
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from array_record.python import array_record_module
from covering import slow_but

from tftoolkit.pipelines import Pipeline, SourceError, StateMismatchError, image, sources
from tftoolkit.pipelines.keys import uniform_int
from tftoolkit.pipelines.plan.stage import Paired
from tftoolkit.pipelines.sources.source import fetch_in_python

# ---- every byte of a file, flipped in turn

RECORDS = [b"first", b"", b"3rd"]


def write_tfrecord(path: Path, records: list[bytes]) -> list[int]:
    """Returns the offset of each record."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return np.cumsum([0, *(len(record) + 16 for record in records[:-1])]).tolist()


def write_array_record(path: Path, records: list[bytes], group_size: int = 1) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), f"group_size:{group_size}")
    for record in records:
        writer.write(record)
    writer.close()


def delivered(p: Pipeline) -> list[bytes]:
    return [record for batch in p.dataset(epochs=1) for record in batch["record"].numpy().tolist()]


def skipping(source: sources.Source, **options: Any) -> Pipeline:
    return Pipeline(source, on_error="skip", max_skipped=0.5, **options)


@pytest.mark.slow
def test_every_flipped_byte_of_a_tfrecord_costs_its_record(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    offsets = write_tfrecord(path, RECORDS)
    content = path.read_bytes()
    for position in range(len(content)):
        number = int(np.searchsorted(offsets, position, side="right")) - 1
        damaged = bytearray(content)
        damaged[position] ^= 0x20
        path.write_bytes(damaged)
        named = f"{path}, record {number} at offset {offsets[number]}: it is damaged"
        p = skipping(sources.tfrecord(path)).batch(3)
        assert delivered(p) == [record for i, record in enumerate(RECORDS) if i != number], position
        assert [one.examples for one in p.skipped] == [(number,)]
        assert p.skipped[0].reason.startswith(named)
        if position % 7 == 0:
            with pytest.raises(SourceError) as caught:
                list(zip(range(2), Pipeline(sources.tfrecord(path)).batch(3), strict=False))
            assert str(caught.value).startswith(named)


@pytest.mark.slow
def test_no_flipped_byte_of_an_array_record_changes_another_record(tmp_path: Path) -> None:
    """What array_record itself cannot tell (damage in its index) must at least never give a wrong record."""
    path = tmp_path / "a.array_record"
    write_array_record(path, RECORDS)
    content = path.read_bytes()
    lost = []
    # The file is padded to blocks of 64 KiB; nothing but zeros lies between the parts below.
    places = [i for i, byte in enumerate(content) if byte]
    for number, position in enumerate(places[:: max(1, len(places) // 30)]):
        damaged = bytearray(content)
        damaged[position] ^= 0x20
        path.write_bytes(damaged)
        os.utime(path, ns=(0, number))  # array_record's open files are told apart by this
        source = sources_or_none(path)
        if source is None:
            continue
        p = Pipeline(source, on_error="skip", max_skipped=1).batch(3)
        found = delivered(p)
        assert len(found) + len(p.skipped) == len(p._plan.source)
        skipped = {one.examples[0] for one in p.skipped}
        assert found == [record for i, record in enumerate(RECORDS) if i not in skipped], position
        lost.append(len(skipped))
    assert lost.count(1) > len(lost) / 4


def array_record_with_every_byte_flipped(path: Path, group_size: int, zeros: float) -> None:
    """Each costs at most the records of one chunk, and no other record comes in the place of one.

    Zeros, most of which are padding, are flipped at this share of their places."""
    records = [b"first", b"", b"3rd", b"4", b"fifth"]
    chunks = [set(range(first, min(first + group_size, 5))) for first in range(0, 5, group_size)]
    write_array_record(path, records, group_size)
    content = path.read_bytes()
    costly = []
    with open(path, "r+b", buffering=0) as file:
        for position, byte in enumerate(content):
            if not byte and int(position * zeros) == int((position + 1) * zeros):
                continue
            os.pwrite(file.fileno(), bytes([byte ^ 0x20]), position)
            os.utime(path, ns=(0, position + 1))  # array_record's open files are told apart by this
            source = sources.array_record(path)
            assert len(source) == len(records), position
            lost = set()
            for index, record in enumerate(records):
                try:
                    assert source._read(np.array([index])) == [[record]], position
                except SourceError:
                    lost.add(index)
            assert not lost or any(lost <= chunk for chunk in chunks), position
            costly.append(len(lost))
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert max(costly) == group_size
    assert sum(map(bool, costly)) > 100  # the rest is padding, and copies of what stands elsewhere


@pytest.mark.parametrize("group_size", [1, 2])
def test_every_flipped_byte_of_an_array_record_costs_at_most_a_chunk(tmp_path: Path, group_size: int) -> None:
    array_record_with_every_byte_flipped(tmp_path / "a.array_record", group_size, zeros=0)


@pytest.mark.parametrize(
    "share", [pytest.param(0.2, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.exhaustive)]
)
def test_every_flipped_byte_of_an_array_record_with_its_padding(tmp_path: Path, share: float) -> None:
    array_record_with_every_byte_flipped(tmp_path / "a.array_record", 1, zeros=share)


def sources_or_none(path: Path) -> sources.Source | None:
    """None if the file as a whole is refused."""
    try:
        return sources.array_record(path)
    except (SourceError, ValueError) as error:
        if str(path) not in str(error):
            raise
        return None


# ---- skip together with every stage


class Damaged:
    """Sequences of different lengths, some of which cannot be read."""

    def __init__(self, lengths: list[int], bad: set[int]) -> None:
        self.lengths_, self.bad = lengths, bad
        self.element_spec = {"tokens": tf.TensorSpec([None], tf.int32), "id": tf.TensorSpec([], tf.int64)}

    def __len__(self) -> int:
        return len(self.lengths_)

    def fetch(self, indices: tf.Tensor) -> dict[str, Any]:
        return fetch_in_python(self._read, indices, self.element_spec)

    def _read(self, rows: np.ndarray) -> list[Any]:
        for row in rows:
            if int(row) in self.bad:
                raise SourceError(f"damaged: {self.describe(int(row))}")
        return [[np.arange(self.lengths_[row]) + 100 * row for row in rows], rows]

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "damaged", "length": len(self)}

    def describe(self, index: int) -> str:
        return f"x.bin, record {index}"


LENGTHS = [3, 0, 5, 2, 7, 1, 4, 6, 2, 3, 8, 5, 1, 2, 9, 4, 3, 5, 6, 2]
BAD = {4, 9, 10}


def only_id(example: dict[str, Any]) -> dict[str, Any]:
    return {"id": example["id"]}


def keyed(example: dict[str, Any], key: tf.Tensor) -> dict[str, Any]:
    return {**example, "key": key}


def even(example: dict[str, Any]) -> tf.Tensor:
    return example["id"] % 2 == 0


def _with_partner(rows: dict[str, Any], partners: dict[str, Any], keys: tf.Tensor) -> dict[str, Any]:
    return {**rows, "partner": partners["id"], "drawn": uniform_int(keys, 1, 1000)}


CHAINS: dict[str, Callable[[Pipeline], Pipeline]] = {
    "batch": lambda p: p.batch(4),
    "padded": lambda p: p.batch(4, padded=True),
    "shuffle": lambda p: p.shuffle().batch(4),
    "take": lambda p: p.take(20).map(only_id).batch(4),
    "keyed": lambda p: p.shuffle().map(keyed).batch(3),
    "filter": lambda p: p.filter(lambda example: example["id"] >= 0).shuffle().batch(4),
    "cache": lambda p: p.map(only_id).cache().shuffle().batch(4),
    "bucket": lambda p: p.bucket(3, [3, 9]),
    "bucket shuffled": lambda p: p.shuffle().bucket(3, [3, 9]),
    "window": lambda p: p.map(only_id).window(1).shuffle().batch(2),
}
RARE = {"filter", "cache", "bucket", "bucket shuffled", "window"}  # these plan: bad examples are not in their batches


def ids(p: Pipeline, start: int = 0) -> list[int]:
    return [int(one) for batch in p.dataset(start, epochs=1) for one in batch["id"].numpy().reshape(-1)]


def reference(name: str, bad: set[int]) -> Pipeline:
    return CHAINS[name](Pipeline(Damaged(LENGTHS, bad), seed=4))


@pytest.mark.parametrize("name", slow_but(CHAINS, "keyed", "bucket shuffled"))
def test_skip_costs_exactly_the_damaged_records(name: str) -> None:
    p = CHAINS[name](skipping(Damaged(LENGTHS, BAD), seed=4))
    found = ids(p)
    assert sorted(found) == [i for i in range(20) if i not in BAD]
    assert [one.examples for one in p.skipped] == [(4,), (9,), (10,)]
    assert [one.reason for one in p.skipped] == [f"damaged: x.bin, record {i}" for i in sorted(BAD)]
    if name not in RARE:  # the others stay where they are
        whole = ids(reference(name, set()))
        assert found == [i for i in whole if i not in BAD]
        assert p.batches_per_epoch == reference(name, set()).batches_per_epoch
    with pytest.raises(SourceError, match=r"damaged: x.bin, record (4|9|10)"):
        list(zip(range(20), reference(name, BAD), strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keyed", "bucket shuffled", "window"])
def test_a_resumed_run_and_workers_skip_the_same(name: str) -> None:
    p = CHAINS[name](skipping(Damaged(LENGTHS, BAD), seed=4))
    whole = [batch["id"].numpy().reshape(-1).tolist() for batch in p.dataset().take(8)]
    again = CHAINS[name](skipping(Damaged(LENGTHS, BAD), seed=4))
    again.restore(json.loads(json.dumps(p.state(3))))
    assert [batch["id"].numpy().reshape(-1).tolist() for _, batch in zip(range(5), again, strict=False)] == whole[3:]
    workers = [p.shard(index, 2) for index in range(2)]
    shares = [[batch["id"].numpy().reshape(-1).tolist() for batch in one.dataset().take(8)] for one in workers]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]


@pytest.mark.slow
def test_random_keys_do_not_depend_on_what_is_skipped() -> None:
    def keys(p: Pipeline) -> dict[int, list[int]]:
        return {int(i): key.tolist() for batch in p.dataset(epochs=1) for i, key in zip(*map_numpy(batch), strict=True)}

    def map_numpy(batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return batch["id"].numpy(), batch["key"].numpy()

    whole = keys(reference("keyed", set()))
    some = keys(CHAINS["keyed"](skipping(Damaged(LENGTHS, BAD), seed=4)))
    assert some == {i: key for i, key in whole.items() if i not in BAD}


@pytest.mark.parametrize(
    "workers", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_row_beside_a_damaged_one_is_mixed_with_itself(workers: int) -> None:
    p = skipping(Damaged([1] * 8, {2}), seed=4).map(only_id).batch(8).map(Paired("partner", _with_partner))
    rows: dict[int, tuple[int, int]] = {}
    for index in range(workers):
        batch = next(iter(p.shard(index, workers).dataset(epochs=1)))
        columns = (batch[name].numpy().reshape(-1).tolist() for name in ("id", "partner", "drawn"))
        rows |= {i: (partner, drawn) for i, partner, drawn in zip(*columns, strict=True)}
    assert {i: partner for i, (partner, _) in rows.items()} == {0: 1, 1: 1, 3: 4, 4: 5, 5: 6, 6: 7, 7: 0}
    sound = Pipeline(Damaged([1] * 8, set()), seed=4).map(only_id).batch(8).map(Paired("partner", _with_partner))
    drawn = next(iter(sound))["drawn"].numpy().reshape(-1).tolist()
    assert {i: one for i, (_, one) in rows.items()} == {i: one for i, one in enumerate(drawn) if i != 2}


@pytest.mark.slow
def test_packed_windows_hold_every_readable_token_once() -> None:
    p = skipping(Damaged(LENGTHS, BAD), seed=4).shuffle().pack(6).batch(2)
    tokens = [
        token
        for batch in p.dataset(epochs=1)
        for token in batch["tokens"].numpy()[batch["segment_ids"].numpy() > 0].tolist()
    ]
    expected = [100 * i + k for i, length in enumerate(LENGTHS) if i not in BAD for k in range(length)]
    assert sorted(tokens) == expected
    assert [one.examples for one in p.skipped] == [(4,), (9,), (10,)]


def test_windows_are_made_of_readable_elements() -> None:
    p = skipping(Damaged(LENGTHS, BAD)).map(only_id).window(3).batch(1)
    windows = [batch["id"].numpy()[0].tolist() for batch in p.dataset(epochs=1)]
    readable = [i for i in range(20) if i not in BAD]
    assert windows == [readable[i : i + 3] for i in range(0, 15, 3)]
    assert [one.examples for one in p.skipped] == [(4,), (9,), (10,)]
    with pytest.raises(ValueError, match=r"window: its plan is made once .*put .window\(…\) before that"):
        skipping(Damaged(LENGTHS, BAD)).map(only_id).shuffle().window(3)
    sound = skipping(Damaged(LENGTHS, set())).map(only_id).window(3).batch(1)
    sound.restore(Pipeline(Damaged(LENGTHS, set())).map(only_id).window(3).batch(1).state(2))  # there is no difference


def test_batches_with_gaps_cannot_be_stacked() -> None:
    p = skipping(Damaged([1] * 8, set())).map(only_id).batch(4)
    with pytest.raises(ValueError, match='stack: with on_error="skip" a batch may come with fewer rows'):
        p.stack(2)


@pytest.mark.slow
def test_damage_that_comes_after_the_plan() -> None:
    def late(make: Callable[[Pipeline], Pipeline], bad: set[int]) -> tuple[Pipeline, list[int]]:
        source = Damaged(LENGTHS, {4})
        p = make(skipping(source, seed=1))
        source.bad |= bad
        return p, ids(p)

    for name in ("filter", "bucket shuffled"):
        p, found = late(CHAINS[name], {7})
        assert sorted(found) == [i for i in range(20) if i not in {4, 7}]
        assert [one.examples for one in p.skipped] == [(4,), (7,)]
    p, found = late(lambda p: p.map(only_id).window(3, shift=1).batch(2), {7})
    assert sorted(set(found)) == [i for i in range(20) if i not in {4, 7}]
    assert len(found) == 3 * 17 - 9  # the three windows with 7 are lost, but it is counted once
    assert [one.examples for one in p.skipped] == [(4,), (7,)]
    assert p.skipped[1].reason == "damaged: x.bin, record 7"

    source = Damaged(LENGTHS, {4})
    p = skipping(source).shuffle().pack(9).batch(2)
    source.bad |= {7}
    tokens = [t for b in p.dataset(epochs=1) for t in b["tokens"].numpy()[b["segment_ids"].numpy() > 0].tolist()]
    assert len(tokens) == len(set(tokens))
    assert not {t // 100 for t in tokens} & {4, 7}
    assert [one.examples for one in p.skipped] == [(4,), (7,)]


def test_what_fails_only_as_a_whole_is_named_by_all_its_members() -> None:
    def refuses(example: dict[str, Any]) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_none_equal(example["id"], np.int64(4), message="not 4")]):
            return {"id": tf.identity(example["id"])}

    p = skipping(Damaged([1] * 8, set())).map(only_id).window(2).map(refuses).batch(4)
    assert ids(p) == [0, 1, 2, 3, 6, 7]
    assert [one.examples for one in p.skipped] == [(4, 5)]
    assert p.skipped[0].reason.startswith("x.bin, record 4, x.bin, record 5: assertion failed: [not 4]")


def test_more_than_the_allowed_share_raises() -> None:
    text = r"2 of 20 examples cannot be read, more than max_skipped=0.05 allows. The last one: damaged: x.bin, record"
    source = Damaged(LENGTHS, BAD)
    p = Pipeline(source, on_error="skip", max_skipped=0.05).batch(10)
    with pytest.raises(SourceError, match=text):
        list(zip(range(2), p, strict=False))
    for stage in (
        lambda p: p.filter(even),
        lambda p: p.pack(4),
        lambda p: p.bucket(2, [9]),
        lambda p: p.map(only_id).window(2),
    ):
        with pytest.raises(SourceError, match=text):
            stage(Pipeline(source, on_error="skip", max_skipped=0.05))
    assert len(ids(Pipeline(source, on_error="skip", max_skipped=0.15).batch(10))) == 17
    everything = Pipeline(Damaged([1, 1], {0, 1}), on_error="skip", max_skipped=1)
    assert [len(batch["id"]) for batch in everything.batch(2, padded=True).dataset(epochs=1)] == [0]
    for plan in (lambda p: p.window(1), lambda p: p.filter(even), lambda p: p.cache()):
        with pytest.raises(ValueError, match=r"(none of|is true for none of) the"):
            plan(everything.map(only_id))


def test_a_stored_filter_knows_what_was_skipped(tmp_path: Path) -> None:
    file = tmp_path / "plan.npz"

    def make(on_error: str, bad: set[int] = BAD, max_skipped: float = 0.5) -> Pipeline:
        source = Damaged(LENGTHS, bad)
        return Pipeline(source, on_error=on_error, max_skipped=max_skipped).filter(even, plan=file).batch(4)

    first = make("skip")
    again = make("skip", bad=set())  # not read again
    assert ids(first) == ids(again) == [i for i in range(0, 20, 2) if i not in BAD]
    assert [one.examples for one in again.skipped] == [(4,), (9,), (10,)]
    with pytest.raises(SourceError, match="3 of 20 examples cannot be read"):
        make("skip", max_skipped=0.1)
    with pytest.raises(SourceError, match=r"damaged: x.bin, record 4"):
        make("raise")
    with pytest.raises(StateMismatchError, match=r"filter even \(keeps 8"):
        make("raise", bad=set()).restore(first.state(1))


def test_making_a_pipeline_leaves_the_one_before_alone() -> None:
    base = skipping(Damaged(LENGTHS, BAD))
    base.filter(even)
    assert base.skipped == []


def test_a_predicate_that_fails_is_told_with_its_example() -> None:
    def checked(example: dict[str, Any]) -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.assert_less(example["id"], np.int64(6), "too large")]):
            return tf.identity(example["id"] % 2 == 0)

    with pytest.raises(SourceError, match=r"x.bin, record 6: assertion failed: \[too large\]"):
        Pipeline(Damaged(LENGTHS, set())).filter(checked)
    p = skipping(Damaged([1] * 8, set())).filter(checked).batch(8)
    assert ids(p) == [0, 2, 4]
    assert [one.examples for one in p.skipped] == [(6,), (7,)]


def test_an_example_larger_than_pad_to_is_named_or_skipped() -> None:
    text = r"x.bin, record 10: .*pad_to: an example is larger than what it shall be padded to; its size:\] \[8\]"

    def make(**options: Any) -> Pipeline:
        p = Pipeline(Damaged(LENGTHS[:12], set()), **options)
        return p.batch(12, padded=True, pad_to={"tokens": 7})

    with pytest.raises(SourceError, match=text):
        next(iter(make()))
    p = make(on_error="skip", max_skipped=0.5)
    assert ids(p) == [i for i in range(12) if i != 10]
    assert [one.examples for one in p.skipped] == [(10,)]


# ---- every kind of bad input


def jpeg_folder(folder: Path) -> Path:
    for i in range(6):
        path = folder / "class" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(np.random.default_rng(i).integers(0, 256, [20, 20, 3], np.uint8)).numpy())
    return folder


@pytest.mark.slow
def test_a_truncated_jpeg(tmp_path: Path) -> None:
    folder = jpeg_folder(tmp_path)
    bad = folder / "class" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:300])

    def make(**options: Any) -> Pipeline:
        p = Pipeline(sources.images(folder), **options).map(image.decode()).map(image.resize(8, 8))
        return p.batch(4)

    with pytest.raises(SourceError, match=rf"{bad}: .*JPEG"):
        next(iter(make()))
    p = make(on_error="skip", max_skipped=0.5)
    names = [name for batch in p.dataset(epochs=1) for name in batch["path"].numpy().tolist()]
    assert names == [f"class/{i}.jpg".encode() for i in (0, 1, 2, 4, 5)]
    assert [one.examples for one in p.skipped] == [(3,)]
    assert str(bad) in p.skipped[0].reason


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "emptied": (lambda path: path.write_bytes(b""), "ends at byte 0, before byte"),
    "vanished": (lambda path: path.unlink(), "No such file"),
    "shortened": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it has changed"),
}


@pytest.mark.parametrize("name", slow_but(CHANGES, "shortened"))
def test_a_picture_that_changes_while_iterating(tmp_path: Path, name: str) -> None:
    change, told = CHANGES[name]
    folder = jpeg_folder(tmp_path)
    bad = folder / "class" / "4.jpg"
    p = Pipeline(sources.images(folder)).batch(3)
    lenient = skipping(sources.images(folder)).batch(3)
    batches = iter(p)
    next(batches)
    change(bad)
    with pytest.raises(SourceError, match=rf"^{bad} .*{told}"):
        next(iter(Pipeline(p._plan.source).batch(6)))
    assert [len(batch["label"]) for batch in lenient.dataset(epochs=1)] == [3, 2]
    assert [one.examples for one in lenient.skipped] == [(4,)]


def test_a_nan_in_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1.5,1\n2.5,2\nnan,3\n4.5,4\n")
    with pytest.raises(SourceError, match=rf"^{path}, line 4.*'x'"):
        list(zip(range(2), Pipeline(sources.csv(path, allow_nan=False)).batch(2), strict=False))
    p = skipping(sources.csv(path, allow_nan=False)).batch(2)
    assert [batch["y"].numpy().tolist() for batch in p.dataset(epochs=1)] == [[1, 2], [4]]
    assert [one.examples for one in p.skipped] == [(2,)]


@pytest.mark.slow
def test_a_record_of_another_shape(tmp_path: Path) -> None:
    def example(values: list[float]) -> bytes:
        feature = {"x": tf.train.Feature(float_list=tf.train.FloatList(value=values))}
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    path = tmp_path / "a.tfrecord"
    write_tfrecord(path, [example([1, 2]), example([1, 2, 3]), b"no example", example([5, 6])])
    source = sources.tfrecord(path, {"x": tf.io.FixedLenFeature([2], tf.float32)})
    with pytest.raises(SourceError, match=rf"^{path}, record 1 at offset \d+, Key: x"):
        next(iter(Pipeline(source).batch(2)))
    with pytest.raises(SourceError, match=rf"^{path}, record 2 at offset \d+: it is no tf.train.Example"):
        next(iter(Pipeline(source).batch(4)))
    p = skipping(source).batch(4)
    assert next(iter(p))["x"].numpy().tolist() == [[1, 2], [5, 6]]
    assert [one.examples for one in p.skipped] == [(1,), (2,)]
    assert p.skipped[1].reason.startswith(f"{path}, record 2 at offset")


def test_files_that_are_not_there_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.tfrecord").write_bytes(b"")
    with pytest.raises(ValueError, match=r"files: there is no record in .*empty.tfrecord"):
        sources.tfrecord(tmp_path / "empty.tfrecord")
    for shard in (0, 1, 3):
        write_tfrecord(tmp_path / f"train-0000{shard}-of-00004", [b"x"])
    with pytest.raises(FileNotFoundError, match=r"shard .*train-00002-of-00004 is missing"):
        sources.tfrecord(tmp_path / "train-*")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        sources.images(tmp_path / "nothing")


def test_a_file_that_vanishes_under_skip_is_told_and_not_skipped_away(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    write_tfrecord(path, [bytes([i]) for i in range(100)])
    p = Pipeline(sources.tfrecord(path), on_error="skip").batch(10)
    path.unlink()
    with pytest.raises(SourceError, match=r"\d+ of 100 examples cannot be read.*cannot open .*a.tfrecord"):
        next(iter(p))


# ---- functions that do not keep their word


def test_another_shape_than_traced_is_told_with_the_example() -> None:
    def one_less(example: dict[str, Any]) -> dict[str, Any]:
        x = tf.numpy_function(lambda i: np.zeros(3 if i != 5 else 2), [example["id"]], tf.float64)
        return {"id": example["id"], "x": tf.ensure_shape(x, [3])}

    with pytest.raises(SourceError, match=r"x.bin, record 5: .*\[2\].*\[3\]"):
        next(iter(Pipeline(Damaged([1] * 8, set())).map(one_less).batch(8)))
    p = skipping(Damaged([1] * 8, set())).map(one_less).batch(8)
    assert ids(p) == [0, 1, 2, 3, 4, 6, 7]


def test_an_exception_in_python_code_is_told_without_its_traceback() -> None:
    def fails(i: int) -> np.ndarray:
        if i == 3:
            raise KeyError("no such word: 'ä'")
        return np.int64(i)

    def through_python(example: dict[str, Any]) -> dict[str, Any]:
        return {"id": tf.ensure_shape(tf.numpy_function(fails, [example["id"]], tf.int64), [])}

    with pytest.raises(SourceError) as caught:
        next(iter(Pipeline(Damaged([1] * 8, set())).map(through_python).batch(8)))
    assert caught.value.plain == """x.bin, record 3: KeyError: "no such word: 'ä'\""""


def test_a_file_of_garbage_is_no_tfrecord(tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(struct.pack("<Q", 2**60) + os.urandom(500))
    with pytest.raises(SourceError, match=rf"{path}, record 0 at offset 0"):
        sources.tfrecord(path)
