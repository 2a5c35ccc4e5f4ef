"""The mix source: exact proportions in every window, components' own epochs, resumption."""

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit.pipelines import Pipeline, sources
from tftoolkit.pipelines.sources import mix_source


def component(number: int, size: int) -> Any:
    """Examples that say which component they come from, and which they are."""
    return sources.arrays({"component": np.full(size, number), "index": np.arange(size)})


def stream(p: Pipeline, batches: int, start: int = 0) -> list[tuple[int, int]]:
    rows = []
    for batch in p.dataset(start).take(batches):
        rows += zip(batch["component"].numpy().tolist(), batch["index"].numpy().tolist(), strict=True)
    return rows


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7))
def test_the_schedule_is_exact_in_every_window(weights: list[int]) -> None:
    """All windows of up to three periods, at every place."""
    weights = mix_source._integer_weights({str(i): weight for i, weight in enumerate(weights)})
    table, rank = mix_source._schedule(weights)
    period, count = sum(weights), len(weights)
    assert len(table) == period
    assert np.bincount(table, minlength=count).tolist() == weights
    for c in range(count):
        assert rank[table == c].tolist() == list(range(weights[c]))
    before = np.zeros([3 * period + 1, count], np.int64)
    before[1:] = np.cumsum(np.tile(table, 3)[:, np.newaxis] == np.arange(count), axis=0)
    # A window's surplus is the difference of the surpluses before its end and before its begin.
    surplus = before * period - np.arange(3 * period + 1)[:, np.newaxis] * np.array(weights)
    worst = (surplus.max(axis=0) - surplus.min(axis=0)).max() / period
    assert worst <= (2 - 1 / (count - 1) if count > 1 else 0) + 1e-9


@pytest.mark.parametrize(
    ("shuffled", "batch_size"),
    [
        (True, 7),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [(False, 7), (True, 1), (True, 64), (False, 64)]),
    ],
)
def test_a_pipeline_keeps_proportions_over_epochs_and_resumes(shuffled: bool, batch_size: int) -> None:
    mixed = sources.mix({"a": (component(0, 10), 0.5), "b": (component(1, 25), 0.3), "c": (component(2, 40), 0.2)})
    p = Pipeline(mixed, seed=5)
    p = (p.shuffle() if shuffled else p).batch(batch_size)
    batches = 3 * p.batches_per_epoch
    rows = stream(p, batches)
    components = np.array([c for c, _ in rows])
    assert len(rows) == 3 * 75
    for c, share in enumerate([Fraction(5, 10), Fraction(3, 10), Fraction(2, 10)]):
        before = np.concatenate([[0], np.cumsum(components == c)])
        surplus = before - np.arange(len(before)) * float(share)
        assert surplus.max() - surplus.min() <= 1.5 + 1e-9
    start = batches // 2 + 1
    before = start // p.batches_per_epoch * 75 + start % p.batches_per_epoch * batch_size
    assert stream(p, batches - start, start) == rows[before:]


def test_each_component_goes_through_its_own_epochs_in_other_orders() -> None:
    mixed = sources.mix({"small": (component(0, 5), 3), "large": (component(1, 40), 1)})
    rows = stream(Pipeline(mixed, seed=1).shuffle().batch(16), 30)
    small = [index for c, index in rows if c == 0]
    epochs = [small[i : i + 5] for i in range(0, len(small) - 5, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > len(epochs) // 3
    large = [index for c, index in rows if c == 1]
    assert sorted(large[:40]) == list(range(40))
    assert large[:40] != sorted(large[:40])
    in_order = stream(Pipeline(mixed).batch(16), 30)
    assert [index for c, index in in_order if c == 0] == [i % 5 for i in range(len([1 for c, _ in in_order if c == 0]))]


def test_an_example_has_another_key_each_time_its_component_begins_again() -> None:
    mixed = sources.mix({"a": (component(0, 4), 1), "b": (component(1, 60), 1)})

    def with_key(example: Any, key: tf.Tensor) -> Any:
        return {**example, "key": key}

    keys = []
    for batch in Pipeline(mixed, seed=2).shuffle().map(with_key).batch(32).dataset(epochs=3):
        rows = zip(*(batch[name].numpy().tolist() for name in ("component", "index", "key")), strict=True)
        keys += [(c, i, *key) for c, i, key in rows]
    assert len(set(keys)) == len(keys) == 3 * 64


@pytest.mark.slow
def test_workers_share_one_global_order() -> None:
    p = Pipeline(sources.mix({"a": (component(0, 9), 2), "b": (component(1, 20), 5)}), seed=3).shuffle().batch(10)
    whole = stream(p, 9)
    parts = [iter(p.shard(i, 2).dataset().take(9)) for i in range(2)]
    together = []
    for batches in zip(*parts, strict=True):
        rows = [list(zip(b["component"].numpy().tolist(), b["index"].numpy().tolist(), strict=True)) for b in batches]
        size = sum(map(len, rows))
        together += [rows[i % 2][i // 2] for i in range(size)]
    assert together == whole


def test_mixtures_of_mixtures_keep_both_proportions() -> None:
    inner = sources.mix({"a": (component(0, 6), 1), "b": (component(1, 7), 2)})
    outer = sources.mix({"inner": (inner, 3), "c": (component(2, 11), 1)}, component_feature="of")
    batches = list(Pipeline(outer, seed=4).shuffle().batch(24).dataset().take(12))
    of = np.concatenate([batch["of"].numpy() for batch in batches])
    components = np.concatenate([batch["component"].numpy() for batch in batches])
    assert (of == (components == 2)).all()
    for c, share in enumerate([1 / 4, 1 / 2, 1 / 4]):
        assert abs((components == c).sum() - share * len(components)) <= 2


def test_ragged_features_and_descriptions() -> None:
    a = sources.arrays({"x": [[1], [2, 3]], "s": ["a0", "a1"]})
    b = sources.arrays(
        {"x": tf.ragged.constant([[], [4, 5, 6], [7]], tf.int32, row_splits_dtype=tf.int64), "s": list("uvw")}
    )
    mixed = sources.mix({"a": (a, 1), "b": (b, 1)})
    rows = mixed.fetch(tf.constant([4, 0, 3, 1, 2], tf.int64))
    assert rows["x"].to_list() == [[7], [1], [4, 5, 6], [2, 3], []]
    assert rows["s"].numpy().tolist() == [b"w", b"a0", b"v", b"a1", b"u"]
    assert mixed.describe(3) == "b: arrays, row 1"
    assert mixed.fetch(tf.zeros([0], tf.int64))["x"].to_list() == []


def test_states_name_the_component_that_changed() -> None:
    def state(size: int, weight: float) -> Pipeline:
        return Pipeline(sources.mix({"a": (component(0, 4), 1), "b": (component(1, size), weight)})).batch(4)

    saved = json.loads(json.dumps(state(5, 2).state(3)))
    state(5, 2).restore(saved)
    with pytest.raises(ValueError, match=r"components.b.source.length: saved 5, this pipeline 6"):
        state(6, 2).restore(saved)
    with pytest.raises(ValueError, match=r"components.b.weight: saved 2, this pipeline 3"):
        state(5, 3).restore(saved)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.1, 0.2], [1, 2]),
        ([3, 6, 9], [1, 2, 3]),
        ([Fraction(1, 3), 1], [1, 3]),
        ([1.5, 0.25], [6, 1]),
        ([1e-3, 1], [1, 1000]),
    ],
)
def test_weights_are_taken_as_written(weights: list[Any], expected: list[int]) -> None:
    mixed = sources.mix({str(i): (component(i, 3), weight) for i, weight in enumerate(weights)})
    told = mixed.fingerprint()["components"]
    assert [told[str(i)]["weight"] for i in range(len(weights))] == expected


A = component(0, 3)


@pytest.mark.parametrize(
    ("components", "error", "text"),
    [
        ({}, ValueError, "the dict is empty"),
        ([A], TypeError, "expected a dict name"),
        ({"a": A}, TypeError, r"components\['a'\]: expected \(source, weight\)"),
        ({"a": (A, 0)}, ValueError, r"components\['a'\]: the weight must be positive, got 0"),
        ({"a": (A, float("nan"))}, ValueError, "must be positive"),
        ({"a": (A, "1")}, TypeError, "the weight must be a number"),
        ({"a": ([1], 1)}, TypeError, "expected one of pipelines.sources"),
        (
            {"a": (A, 1), "b": (sources.arrays({"index": [1.5]}), 1)},
            ValueError,
            "component: int64.* in 'a', missing in 'b'; index",
        ),
        ({"a": (A, 1), "b": (A, 3.14159265)}, ValueError, "no integer ratio .* near them are {'a': 241, 'b': 759}"),
    ],
)
def test_bad_input_is_named(components: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        sources.mix(components)
