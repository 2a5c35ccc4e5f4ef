"""profile: a slow part, planted in each position, is the one it names."""

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow as tf
from covering import slow_but

from tftoolkit.pipelines import Pipeline, profiling, sources, text
from tftoolkit.pipelines.plan.stage import Paired, Vectorized
from tftoolkit.pipelines.sources.source import fetch_in_python

SECONDS = 0.03  # per batch, where "slow" is planted


class Clock:
    """Goes on where something slow was planted, and a little with each look, whatever else the machine does."""

    now = 0.0

    @classmethod
    def perf_counter(cls) -> float:
        cls.now += 1e-6
        return cls.now


@pytest.fixture
def planted_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "time", Clock)


def _wait(value: np.ndarray) -> np.ndarray:
    Clock.now += SECONDS
    return value


def slow(value: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.numpy_function(_wait, [value], value.dtype), value.shape)


class Source:
    element_spec: ClassVar[dict[str, tf.TensorSpec]] = {
        "x": tf.TensorSpec([None], tf.float32),
        "i": tf.TensorSpec([], tf.int64),
    }

    def __init__(self, is_slow: bool) -> None:
        self._is_slow = is_slow

    def __len__(self) -> int:
        return 24

    def fetch(self, indices: tf.Tensor) -> dict[str, Any]:
        return fetch_in_python(self._read, indices, self.element_spec)

    def _read(self, rows: np.ndarray) -> list[Any]:
        if self._is_slow:
            _wait(rows)
        return [[np.ones(i % 4 + 1) for i in rows], rows]

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "planted"}


def _batchwise(rows: dict[str, Any], *_: Any) -> dict[str, Any]:
    return {**rows, "i": slow(rows["i"])}


def _quick(rows: dict[str, Any], *_: Any) -> dict[str, Any]:
    return rows


def first(example: dict[str, Any]) -> dict[str, Any]:
    return {**example, "i": example["i"] + 1}


def second(example: dict[str, Any]) -> dict[str, Any]:
    return {**example, "i": example["i"] - 1}


def waiting(example: dict[str, Any]) -> dict[str, Any]:
    return {**example, "i": slow(example["i"])}


def make(planted: str) -> Pipeline:
    p = Pipeline(Source(planted == "read"), seed=1).shuffle()
    p = p.map(first).map(waiting if planted == "row" else second)
    p = p.map(Vectorized("whole batches", _batchwise if planted == "rows" else _quick))
    p = p.batch(4, padded=True, pad_to={"x": 4}, drop_remainder=True)
    return p.map(Paired("pairs", _batchwise if planted == "pair" else _quick))


PLANTED = {"read": "read planted", "row": "map waiting", "rows": "map whole batches", "pair": "map pairs"}


@pytest.mark.usefixtures("planted_clock")
@pytest.mark.parametrize("planted", slow_but(PLANTED, "read", "pair"))
def test_the_slow_stage_is_named(planted: str) -> None:
    name = PLANTED[planted]
    profile = make(planted).profile(batches=3)
    assert profile.slowest == name
    slowest = next(stage for stage in profile.stages if stage.name == name)
    assert slowest.seconds >= SECONDS
    marked = [line for line in str(profile).splitlines() if line.endswith("<- slowest")]
    assert len(marked) == 1
    assert marked[0].startswith(name)


class SlowOrder(Source):
    def order(self, epoch: tf.Tensor, index: tf.Tensor, seed: int, shuffled: bool) -> tuple[tf.Tensor, tf.Tensor]:
        return epoch, slow(index)


def only_i(example: dict[str, Any]) -> dict[str, Any]:
    return {"i": example["i"]}


@pytest.mark.slow
@pytest.mark.usefixtures("planted_clock")
def test_a_slow_order_is_named() -> None:
    profile = Pipeline(SlowOrder(False)).map(only_i).window(2).batch(2).profile(batches=3)
    assert profile.slowest == "order"
    assert profile.stages[0].seconds > SECONDS / 100  # a batch's share of a block


@pytest.mark.slow
@pytest.mark.usefixtures("planted_clock")
def test_a_slow_stage_behind_a_filter_is_named() -> None:
    p = Pipeline(Source(False)).filter(lambda example: example["i"] > 2).map(waiting).batch(4)
    assert p.profile(batches=3).slowest == "map waiting"


LONG = 3_000_000  # places that a stage must fill, so that it takes longer than all others together


class Varied(Source):
    """One example is long, so that nearly all of a padded batch is made by padding the others."""

    def _read(self, rows: np.ndarray) -> list[Any]:
        return [[np.ones(LONG // 2 if i == 0 else 1, np.float32) for i in rows], rows]


def large(example: dict[str, Any]) -> dict[str, Any]:
    return {"x": tf.fill([LONG // 12], tf.cast(example["i"], tf.float32))}


def begins(example: dict[str, Any]) -> dict[str, Any]:
    return {"x": example["x"][0]}


# What these stages do is no function of the user, so they are given more to do instead of a pause.
LADEN = {
    "batch": (lambda folder: Pipeline(Source(False)).batch(4, padded=True, pad_to={"x": LONG}), "batch(4, padded to"),
    "ragged batch": (lambda folder: Pipeline(Varied(False)).batch(24, padded=True), "batch(24, padded to the longest"),
    "bucket": (
        lambda folder: Pipeline(Source(False)).bucket(4, [3 * LONG], "x", pad_to_boundary=True),
        f"bucket('x', boundaries=[{3 * LONG}]",
    ),
    "pack": (lambda folder: Pipeline(Source(False)).pack(4 * LONG, "x").batch(1), f"pack({4 * LONG}, x"),
    "cache": (lambda folder: Pipeline(Source(False)).map(large).cache(folder).map(begins).batch(12), "read cache"),
    "tokenize": (
        lambda folder: (
            Pipeline(sources.arrays({"text": [b"some words " * 5_000] * 4}))
            .map(text.tokenize(text.byte_tokenizer()))
            .batch(2)
        ),
        "map tokenize(",
    ),
}


@pytest.mark.parametrize("name", slow_but(LADEN, "batch"))
def test_a_stage_with_much_to_do_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processor's time, of which what else the machine does takes nothing."""
    monkeypatch.setattr(profiling, "time", SimpleNamespace(perf_counter=time.process_time))
    make_one, start = LADEN[name]
    profile = make_one(tmp_path / "cache").profile(batches=5)
    assert profile.slowest.startswith(start), str(profile)
    assert max(stage.seconds for stage in profile.stages) > 3e-4  # megabytes take longer, whatever the machine


def test_every_stage_has_its_line() -> None:
    profile = make("none").profile(batches=2)
    names = ["order", "read planted", "map first", "map second", "map whole batches"]
    assert [stage.name for stage in profile.stages][:5] == names
    assert profile.stages[5].name.startswith("batch(4, drop_remainder=True, padded to")
    assert profile.stages[6].name == "map pairs"
    assert profile.rows == 4
    assert profile.delivered > 0
    assert profile.stages[-1].bytes == 4 * (4 * 4 + 8)
    table = str(profile).splitlines()
    assert table[0].split() == ["stage", "ms/batch", "share", "records/s", "MB/batch"]
    assert len(table) == 1 + 7 + 2
    shares = [float(found[1]) for line in table[1:8] if (found := re.search(r"([\d.]+)%", line))]
    assert len(shares) == 7
    assert 99 < sum(shares) < 101


KINDS = {
    "pack": (lambda p: p.pack(6, "x").batch(2), "pack(6, x"),
    "bucket": (lambda p: p.bucket(2, [2, 9], "x"), "bucket('x'"),
    "window": (lambda p: p.map(lambda e: {"i": e["i"]}).window(3).batch(2), "window(size=3, shift=3)"),
    "cache": (lambda p: p.filter(lambda e: e["i"] > 3).cache().batch(2), "batch(2)"),
    "stack": (lambda p: p.map(lambda e: {"i": e["i"]}).batch(4).stack(2), "batch(4)"),
    "shard": (lambda p: p.batch(4).shard(1, 2), "batch(4)"),
    "order": (lambda p: p.repeat(2).shuffle().take(30).batch(4), "batch(4)"),
}


@pytest.mark.parametrize("kind", slow_but(KINDS, "pack", "stack"))
@pytest.mark.slow
def test_every_kind_of_stage_can_be_profiled(kind: str) -> None:
    make_one, name = KINDS[kind]
    profile = make_one(Pipeline(Source(False))).profile(batches=2)
    assert any(stage.name.startswith(name) for stage in profile.stages)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"call .batch\(batch_size\)"):
        Pipeline(Source(False)).profile()
    with pytest.raises(ValueError, match="batches=0"):
        Pipeline(Source(False)).batch(2).profile(batches=0)
