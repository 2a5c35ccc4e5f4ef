"""Random pipelines over every kind of source: exact to resume, the same for any number of workers, small states.

A long file: the table of pipelines that every promise is tried on.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from covering import slow_but
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tftoolkit.pipelines import Pipeline, StateMismatchError, sources

Rows = list[dict[str, np.ndarray]]
WORKERS = (1, 2, 3, 4, 8)


def assert_same(left: list[Rows], right: list[Rows]) -> None:
    """Bit for bit."""
    assert [len(rows) for rows in left] == [len(rows) for rows in right]
    for number, (rows, others) in enumerate(zip(left, right, strict=True)):
        for place, (row, other) in enumerate(zip(rows, others, strict=True)):
            assert row.keys() == other.keys()
            for name in row:
                where = f"batch {number}, row {place}, {name!r}"
                assert row[name].dtype == other[name].dtype, where
                assert row[name].shape == other[name].shape, where
                assert row[name].tobytes() == other[name].tobytes() or (
                    row[name].dtype == object and row[name].tolist() == other[name].tolist()
                ), f"{where}: {row[name]!r} and {other[name]!r}"


def padded_like(rows: Rows, whole: Rows) -> Rows:
    """``rows``, padded to the shapes in ``whole``: each worker pads to the longest of its own rows."""

    def one(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if any(have > want for have, want in zip(value.shape, shape, strict=True)):
            return value
        fill = b"" if value.dtype == object else 0
        margins = [(0, want - have) for have, want in zip(value.shape, shape, strict=True)]
        return np.pad(value, margins, constant_values=fill) if value.shape != shape else value

    return [
        {name: one(value, like[name].shape) for name, value in row.items()}
        for row, like in zip(rows, whole, strict=True)
    ]


def together(parts: list[list[Rows]]) -> list[Rows]:
    """The batches that workers hold parts of: worker i has rows i, i + count, …"""
    count = len(parts)
    return [
        [shares[place % count][place // count] for place in range(sum(map(len, shares)))]
        for shares in zip(*parts, strict=True)
    ]


def check(lib: ModuleType, case: Any, folder: Path, position: int, workers: tuple[int, int]) -> None:
    """Everything that must hold for a pipeline of which ``position`` batches have been seen."""
    p = case.build(folder)
    stacked = max(p._plan.stacked, 1)
    after = 3
    whole = lib.batches_of(p, 0, position + after)
    rest = whole[position * stacked :]
    text = json.dumps(p.state(position))
    assert len(text) <= 2048

    again = case.build(folder)
    again.restore(json.loads(text))
    assert again.position == position
    assert_same(lib.batches_of(again, again.position, after), rest)

    # One number of workers up to ``position``, another one from there on.
    before = whole[: position * stacked]
    for count, start, number, expected in ((workers[0], 0, position, before), (workers[1], position, after, rest)):
        count = min(count, p._plan.batching.largest)
        if count > 1:
            shares = []
            for worker in lib.workers_of(case, folder, count):
                worker.restore(json.loads(text))
                shares.append(lib.batches_of(worker, start, number))
            joined = together(shares)
            assert_same([padded_like(rows, like) for rows, like in zip(joined, expected, strict=True)], expected)


def random_pipelines_are_exact(lib: ModuleType, folder: Path, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=SLOW)
    @given(lib.cases(folder), st.integers(0, 12), st.tuples(st.sampled_from(WORKERS), st.sampled_from(WORKERS)))
    def holds(case: Any, position: int, workers: tuple[int, int]) -> None:
        check(lib, case, folder, position, workers)

    holds()


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.slow
def test_random_pipelines_are_exact(random_pipelines: ModuleType, source_files: Path) -> None:
    random_pipelines_are_exact(random_pipelines, source_files, 5)


@pytest.mark.exhaustive
def test_many_random_pipelines_are_exact(random_pipelines: ModuleType, source_files: Path) -> None:
    random_pipelines_are_exact(random_pipelines, source_files, 100)


# One pipeline per source, with every stage in at least one of them.
CHAINS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "arrays": [
        ("map", {"function": "measured"}),
        ("cache", {}),
        ("repeat", {"count": 2}),
        ("shuffle", {}),
        ("window", {"size": 2, "shift": 1}),
        ("map", {"function": "noisy"}),
        ("batch", {"batch_size": 5, "drop_remainder": True}),
        ("map", {"function": "blended"}),
        ("stack", {"count": 2}),
    ],
    "tfrecord": [("shuffle", {}), ("pack", {"size": 5, "features": "values"}), ("batch", {"batch_size": 3})],
    "array_record": [("shuffle", {}), ("map", {"function": "noisy"}), ("batch", {"batch_size": 4})],
    "images": [("map", {"function": "decode"}), ("shuffle", {}), ("batch", {"batch_size": 2, "padded": True})],
    "text": [("filter", {"predicate": "even_size"}), ("shuffle", {}), ("batch", {"batch_size": 2})],
    "csv": [("shuffle", {}), ("take", {"count": 7}), ("map", {"function": "drawn"}), ("batch", {"batch_size": 3})],
    "parquet": [("shuffle", {}), ("batch", {"batch_size": 4, "padded": True, "pad_to": {"values": 6}})],
    "audio": [
        ("shuffle", {}),
        ("bucket", {"batch_size": 2, "boundaries": [30, 99], "feature": "waveform", "pad_to_boundary": True}),
    ],
    "tokens": [("shuffle", {}), ("map", {"function": "drawn"}), ("batch", {"batch_size": 2})],
    "token_windows": [("shuffle", {}), ("batch", {"batch_size": 4, "drop_remainder": True}), ("stack", {"count": 3})],
    "tfds": [("map", {"function": "noisy"}), ("batch", {"batch_size": 5}), ("map", {"function": "blended"})],
    "mix": [("shuffle", {}), ("map", {"function": "noisy"}), ("batch", {"batch_size": 4})],
}


def in_a_new_process(lib: ModuleType, folder: Path, requests: list[tuple[Any, int, int]]) -> list[str]:
    """Digests of batches that another process loads after it has restored a state."""
    text = json.dumps([[case.to_json(), case.build(folder).state(start), count] for case, start, count in requests])
    done = subprocess.run(
        [sys.executable, lib.__file__, folder], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_new_process_continues_bit_for_bit(random_pipelines: ModuleType, source_files: Path) -> None:
    lib = random_pipelines
    assert CHAINS.keys() == lib.SOURCES.keys()
    requests = [(lib.Case(source, 7, tuple(stages)), 4, 4) for source, stages in CHAINS.items()]
    digests = in_a_new_process(lib, source_files, requests)
    for (case, start, count), found in zip(requests, digests, strict=True):
        p = case.build(source_files)
        whole = lib.batches_of(p, 0, start + count)
        assert found == lib.digest(whole[start * max(p._plan.stacked, 1) :]), case


# The fast tests have the one in which most kinds of stages meet.
@pytest.mark.parametrize("source", slow_but(CHAINS, "arrays"))
def test_workers_come_and_go(random_pipelines: ModuleType, source_files: Path, source: str) -> None:
    case = random_pipelines.Case(source, 11, tuple(CHAINS[source]))
    check(random_pipelines, case, source_files, position=3, workers=(1, 2))


# ---- numbers of workers, all of them

# Every source and every kind of stage, in batches with rows for eight workers; the last one of an epoch has too few.
SHARED: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {
    "arrays": ("arrays", [("shuffle", {}), ("map", {"function": "noisy"}), ("batch", {"batch_size": 8})]),
    "pairs": ("arrays", [("shuffle", {}), ("batch", {"batch_size": 8}), ("map", {"function": "blended"})]),
    "stack": (
        "arrays",
        [("shuffle", {}), ("batch", {"batch_size": 8, "drop_remainder": True}), ("stack", {"count": 3})],
    ),
    "filter, cache": (
        "text",
        [("filter", {"predicate": "even_size"}), ("cache", {}), ("repeat", {"count": 2}), ("batch", {"batch_size": 8})],
    ),
    "window": (
        "arrays",
        [("shuffle", {}), ("window", {"size": 3, "shift": 1}), ("take", {"count": 15}), ("batch", {"batch_size": 8})],
    ),
    "pack": (
        "tokens",
        [("shuffle", {}), ("pack", {"size": 5, "features": "tokens"}), ("batch", {"batch_size": 8})],
    ),
    "bucket": (
        "tfrecord",
        [("shuffle", {}), ("bucket", {"batch_size": 8, "boundaries": [1, 9], "feature": "values"})],
    ),
    "array_record": ("array_record", [("shuffle", {}), ("map", {"function": "drawn"}), ("batch", {"batch_size": 8})]),
    "images": (
        "images",
        [("map", {"function": "decode"}), ("shuffle", {}), ("batch", {"batch_size": 8, "padded": True})],
    ),
    "text": ("text", [("shuffle", {}), ("batch", {"batch_size": 8})]),
    "csv": ("csv", [("shuffle", {}), ("map", {"function": "measured"}), ("batch", {"batch_size": 8})]),
    "parquet": ("parquet", [("shuffle", {}), ("batch", {"batch_size": 8, "padded": True, "pad_to": {"values": 6}})]),
    "audio": ("audio", [("shuffle", {}), ("repeat", {"count": 2}), ("batch", {"batch_size": 8})]),
    "tokens": ("tokens", [("shuffle", {}), ("batch", {"batch_size": 8})]),
    "token_windows": ("token_windows", [("shuffle", {}), ("batch", {"batch_size": 8})]),
    "tfds": ("tfds", [("shuffle", {}), ("map", {"function": "noisy"}), ("batch", {"batch_size": 8})]),
    "mix": ("mix", [("shuffle", {}), ("map", {"function": "noisy"}), ("batch", {"batch_size": 8})]),
}


# Every number before the change with every other one after it, and every pipeline with at least one of these pairs;
# every other one of these is slow only, the rest exhaustive.
CHANGES_OF_WORKERS = [
    pytest.param(name, counts, marks=pytest.mark.exhaustive if number % 2 else pytest.mark.slow)
    for number, (name, counts) in enumerate(
        zip(itertools.cycle(SHARED), itertools.permutations(WORKERS, 2), strict=False)
    )
]


@pytest.mark.parametrize(("name", "counts"), CHANGES_OF_WORKERS)
def test_the_number_of_workers_may_change_within_an_epoch(
    random_pipelines: ModuleType, source_files: Path, name: str, counts: tuple[int, int]
) -> None:
    changing_within_an_epoch(random_pipelines, source_files, name, *counts)


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", WORKERS)
@pytest.mark.parametrize("name", SHARED)
def test_any_number_of_workers_may_follow_any_other(
    random_pipelines: ModuleType, source_files: Path, name: str, count: int
) -> None:
    changing_within_an_epoch(random_pipelines, source_files, name, count, count)


def changing_within_an_epoch(lib: ModuleType, folder: Path, name: str, count_before: int, count_after: int) -> None:
    """What each number of workers has up to a batch within an epoch, and from there on with the state of that batch,
    is the one stream: so after any number any other may follow, and nothing is lost or seen twice."""
    source, stages = SHARED[name]
    case = lib.Case(source, 5, tuple(stages))
    p = case.build(folder)
    stacked = max(p._plan.stacked, 1)
    position, after = 1, 2
    assert position * stacked % p.batches_per_epoch, "it must lie within an epoch"
    whole = lib.batches_of(p, 0, position + after)
    state = json.dumps(p.state(position))
    before = [lib.batches_of(worker, 0, position) for worker in lib.workers_of(case, folder, count_before)]
    workers = lib.workers_of(case, folder, count_after)
    for worker in workers:
        worker.restore(json.loads(state))
    rest = [lib.batches_of(worker, worker.position, after) for worker in workers]
    joined = together(before) + together(rest)
    assert_same([padded_like(rows, like) for rows, like in zip(joined, whole, strict=True)], whole)


def test_every_source_is_shared_among_workers(random_pipelines: ModuleType) -> None:
    assert {source for source, _ in SHARED.values()} == random_pipelines.SOURCES.keys()


# ---- states


def big_feature_set() -> Pipeline:
    features = {f"feature {i} ü 中文": np.zeros([60, i + 1], np.float32) for i in range(200)}
    p = Pipeline(sources.arrays(features)).shuffle()
    for count in range(60, 2, -1):
        p = p.take(count)
    return p.map(lambda example: example).batch(2)


def test_states_are_small_for_many_features_and_stages() -> None:
    p = big_feature_set()
    text = json.dumps(p.state(2**60))
    assert len(text) <= 2048
    assert json.loads(text) == p.state(2**60)
    p.restore(json.loads(text))
    assert p.position == 2**60


def test_states_are_small_for_many_files(tmp_path: Path) -> None:
    for i in range(1000):
        (tmp_path / f"{'long name ' * 15}ü {i:04d}.txt").write_text(f"{i}\n")
    p = Pipeline(sources.text(tmp_path / "*.txt"), seed=2**63 - 1).shuffle().batch(3)
    text = json.dumps(p.state(1))
    assert len(text) <= 2048
    p.restore(json.loads(text))
    (tmp_path / "one more.txt").write_text("1\n")
    other = Pipeline(sources.text(tmp_path / "*.txt"), seed=2**63 - 1).shuffle().batch(3)
    with pytest.raises(StateMismatchError, match=r"source\.files\.count: saved 1000, this pipeline 1001"):
        other.restore(json.loads(text))


def _rewrite_tfrecord(folder: Path) -> None:
    with tf.io.TFRecordWriter(str(folder / "b.tfrecord")) as writer:
        writer.write(b"")


CHANGES = [
    ("tfrecord", _rewrite_tfrecord, r"source\.files\.b\.tfrecord: saved \d+, this pipeline 16"),
    ("text", lambda folder: _append(folder / "lines.txt", b"more\n"), r"source\.files\.lines\.txt: saved \d+"),
    ("csv", lambda folder: _append(folder / "table.csv", b'99,"x",1\n'), r"source\.length: saved 14, this pipeline 15"),
    (
        "images",
        lambda folder: (folder / "images" / "c" / "0.png").unlink(),
        "source.length: saved 9, this pipeline 8",
    ),
    ("images", lambda folder: os.rename(folder / "images" / "c", folder / "images" / "e"), r"source\.files\."),
    (
        "audio",
        lambda folder: (folder / "0.wav").rename(folder / "9.wav"),
        r"files\.0\.wav: saved \d+, .*nothing",
    ),
]


def _append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


@pytest.mark.parametrize(("source", "change", "named"), CHANGES, ids=[named for *_, named in CHANGES])
def test_a_changed_source_is_refused(
    random_pipelines: ModuleType, source_files: Path, tmp_path: Path, source: str, change: Any, named: str
) -> None:
    folder = Path(shutil.copytree(source_files, tmp_path / "files"))
    case = random_pipelines.Case(source, 0, (("shuffle", {}), ("batch", {"batch_size": 2})))
    state = case.build(folder).state(1)
    case.build(folder).restore(state)
    change(folder)
    with pytest.raises(StateMismatchError, match=named):
        case.build(folder).restore(state)


def test_other_settings_of_a_source_are_refused(source_files: Path) -> None:
    """Settings that change what comes, even where files and features are the same."""

    def state(source: sources.Source) -> dict[str, Any]:
        return Pipeline(source).map(lambda example: {"n": tf.constant(1)}).batch(2).state(1)

    def csv(**settings: Any) -> sources.Source:
        return sources.csv(source_files / "table.csv", **settings)

    def parquet(**settings: Any) -> sources.Source:
        return sources.parquet(source_files / "table.parquet", **settings)

    def tfrecord(**features: Any) -> sources.Source:
        return sources.tfrecord(source_files / "a.tfrecord", features)

    label = tf.io.FixedLenFeature([], tf.int64)
    pairs = [
        (csv(), csv(types={"number": tf.float32})),
        (csv(), csv(columns=["number", "price"])),
        (csv(), csv(missing=["3"], defaults={"number": 0})),
        (csv(missing=["3"], defaults={"number": 1}), csv(missing=["3"], defaults={"number": 0})),
        (parquet(), parquet(columns=["id"])),
        (tfrecord(label=label), tfrecord(values=tf.io.VarLenFeature(tf.int64))),
        (sources.text(source_files / "lines.txt"), sources.text(source_files / "lines.txt", by="paragraph")),
        (sources.audio(source_files / "*.wav"), sources.audio(source_files / "*.wav", frames=5)),
    ]
    for one, other in pairs:
        p = Pipeline(other).map(lambda example: {"n": tf.constant(1)}).batch(2)
        with pytest.raises(StateMismatchError, match=r"source"):
            p.restore(state(one))
