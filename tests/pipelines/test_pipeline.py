"""Pipelines: exact resumption, keys, shards, epochs, states."""

import itertools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit import pipelines
from tftoolkit.pipelines import Pipeline, StateMismatchError

Batch = dict[str, np.ndarray]


def source(size: int) -> pipelines.sources.Source:
    return pipelines.sources.arrays({"index": np.arange(size), "image": np.arange(size * 6).reshape(size, 2, 3, 1)})


def noisy(example: dict[str, Any], key: tf.Tensor) -> dict[str, Any]:
    return {**example, "noise": tf.random.stateless_uniform([3], key), "key": key}


def take(dataset: tf.data.Dataset, count: int) -> list[Batch]:
    return list(dataset.take(count).as_numpy_iterator())


def arrays(batches: Iterable[dict[str, tf.Tensor]]) -> list[Batch]:
    return [{name: value.numpy() for name, value in batch.items()} for batch in batches]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def rows(batches: list[Batch], name: str) -> list[Any]:
    return [row.tolist() for batch in batches for row in batch[name]]


@st.composite
def pipelines_with_numbers(draw: st.DrawFn) -> tuple[Pipeline, int]:
    """A pipeline and the number of a batch in its first few epochs."""
    size = draw(st.integers(1, 40))
    batch_size = draw(st.integers(1, 12))
    p = Pipeline(source(size), seed=draw(st.integers(0, 2**63 - 1)))
    if draw(st.booleans()):
        p = p.shuffle()
    if draw(st.booleans()):
        p = p.map(noisy)
    if draw(st.booleans()):
        p = p.map(pipelines.image.random_shift(1))
    p = p.batch(batch_size, drop_remainder=size >= batch_size and draw(st.booleans()))
    return p, draw(st.integers(0, 3 * p.batches_per_epoch))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(pipelines_with_numbers())
def test_restoring_at_any_batch_gives_the_rest_bit_for_bit(drawn: tuple[Pipeline, int]) -> None:
    restoring_gives_the_rest_bit_for_bit(*drawn)


def test_restoring_in_the_second_epoch_gives_the_rest_bit_for_bit() -> None:
    p = Pipeline(source(11), seed=5).shuffle().map(noisy).map(pipelines.image.random_shift(1)).batch(4)
    restoring_gives_the_rest_bit_for_bit(p, 4)


def restoring_gives_the_rest_bit_for_bit(p: Pipeline, number: int) -> None:
    stream = iter(p)
    for _ in range(number):
        next(stream)
    state = json.loads(json.dumps(p.state()))
    assert state["position"] == p.position == number
    rest = arrays(itertools.islice(stream, 4))
    assert p.position == number + 4
    assert p.state(number) == state
    p.restore(state)
    assert p.position == number
    assert_same(arrays(itertools.islice(p, 4)), rest)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(pipelines_with_numbers(), st.integers(1, 3))
def test_start_equals_skip(drawn: tuple[Pipeline, int], epochs: int) -> None:
    p, number = drawn
    skipped = list(p.dataset(epochs=epochs).skip(number).as_numpy_iterator())
    assert_same(list(p.dataset(start=number, epochs=epochs).as_numpy_iterator()), skipped)


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_an_epoch_shows_every_example_once(drop_remainder: bool) -> None:
    p = Pipeline(source(23)).shuffle().batch(5, drop_remainder)
    assert p.batches_per_epoch == (4 if drop_remainder else 5)
    batches = list(p.dataset(epochs=3).as_numpy_iterator())
    assert [len(b["index"]) for b in batches] == 3 * ([5] * 4 if drop_remainder else [5] * 4 + [3])
    first = [epoch * p.batches_per_epoch for epoch in range(3)]
    epochs = [rows(batches[k : k + p.batches_per_epoch], "index") for k in first]
    for seen in epochs:
        assert len(set(seen)) == len(seen) == (20 if drop_remainder else 23)
    assert epochs[0] != epochs[1] != epochs[2]
    assert_same(arrays(p.dataset(start=first[1] + 1, epochs=3)), batches[first[1] + 1 :])
    assert [len(p.dataset(start=k, epochs=2)) for k in (0, 1, 100)] == [
        2 * p.batches_per_epoch,
        2 * p.batches_per_epoch - 1,
        0,
    ]


def test_without_shuffle_the_order_is_that_of_the_source() -> None:
    assert rows(take(Pipeline(source(7)).batch(3).dataset(), 4), "index") == [*range(7), 0, 1, 2]


def test_batch_dimension_is_static_where_every_batch_is_full() -> None:
    def batch_dimension(size: int, *batch: Any) -> int | None:
        p = Pipeline(source(size)).shuffle().map(noisy).map(pipelines.image.random_shift(1)).batch(*batch)
        assert p.element_spec["image"].shape[1:] == [2, 3, 1]
        assert p.element_spec["noise"].shape[1:] == [3]
        dimensions = {spec.shape[0] for spec in p.element_spec.values()}
        assert len(dimensions) == 1
        return dimensions.pop()

    assert batch_dimension(23, 5) is None
    assert batch_dimension(23, 5, True) == 5
    assert batch_dimension(20, 5) == 5


def test_cardinality_is_known() -> None:
    p = Pipeline(source(23)).batch(5)
    assert p.dataset().cardinality() == tf.data.INFINITE_CARDINALITY
    assert p.dataset(start=3, epochs=2).cardinality() == 7


@pytest.mark.slow
def test_keys_depend_on_seed_epoch_example_and_stage_only() -> None:
    def keys(p: Pipeline, epoch: int) -> dict[int, tuple[int, ...]]:
        batches = take(p.dataset(start=epoch * p.batches_per_epoch), p.batches_per_epoch)
        return dict(zip(rows(batches, "index"), map(tuple, rows(batches, "key")), strict=True))

    base = Pipeline(source(24), seed=5)
    reference = keys(base.map(noisy).batch(24), epoch=1)
    assert keys(base.map(noisy).batch(5), epoch=1) == reference
    assert keys(base.shuffle().map(noisy).batch(7), epoch=1) == reference
    others = [
        keys(base.map(noisy).batch(8), epoch=0),
        keys(Pipeline(source(24), seed=6).map(noisy).batch(8), epoch=1),
        keys(base.map(lambda example: example).map(noisy).batch(8), epoch=1),
    ]
    drawn = [key for some in [reference, *others] for key in some.values()]
    assert len(set(drawn)) == len(drawn) == 4 * 24


def test_map_in_the_data_set_equals_the_eager_call_per_example() -> None:
    data = source(17)
    batches = take(Pipeline(data).shuffle().map(noisy).batch(4).dataset(), 5)
    for index, noise, key in zip(*(rows(batches, n) for n in ("index", "noise", "key")), strict=True):
        example = {name: value[0] for name, value in data.fetch(tf.constant([index])).items()}
        np.testing.assert_array_equal(noisy(example, tf.constant(key))["noise"], np.float32(noise))


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.data())
def test_workers_of_any_number_see_the_unsharded_stream(size: int, batch_size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, batch_size))
    workers_together_see_the_unsharded_stream(size, batch_size, count, size >= batch_size and data.draw(st.booleans()))


@pytest.mark.slow
def test_two_workers_together_see_the_unsharded_stream() -> None:
    workers_together_see_the_unsharded_stream(11, 3, 2, False)


def workers_together_see_the_unsharded_stream(size: int, batch_size: int, count: int, drop_remainder: bool) -> None:
    p = Pipeline(source(size), seed=1).shuffle().map(noisy).batch(batch_size, drop_remainder)
    number = p.batches_per_epoch + 2
    whole = take(p.dataset(), number)
    parts = [take(p.shard(index, count).dataset(), number) for index in range(count)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for name, values in batch.items():
            together = np.empty_like(values)
            for index, share in enumerate(shares):
                together[index::count] = share[name]
            np.testing.assert_array_equal(together, values)


@pytest.mark.slow
def test_a_state_serves_every_worker_and_every_count() -> None:
    p = Pipeline(source(20)).shuffle().batch(6)
    state = p.state(7)
    for index, count in [(1, 2), (2, 3)]:
        worker = p.shard(index, count)
        assert worker.batches_per_epoch == p.batches_per_epoch
        worker.restore(state)
        np.testing.assert_array_equal(next(iter(worker))["index"], take(p.dataset(7), 1)[0]["index"][index::count])


def test_a_worker_without_rows_gets_an_empty_batch() -> None:
    p = Pipeline(source(5)).shuffle().map(noisy).batch(4)
    for index, rows_of_last in ((0, 1), (2, 0)):
        (batch,) = p.shard(index, 3).dataset(1, epochs=1)
        assert len(batch["noise"]) == rows_of_last


def test_sharded_batch_dimension_is_static() -> None:
    p = Pipeline(source(20)).batch(7, drop_remainder=True)
    assert [p.shard(i, 2).element_spec["index"].shape[0] for i in range(2)] == [4, 3]


def test_stages_leave_the_pipeline_they_are_called_on_alone() -> None:
    base = Pipeline(source(10))
    base.shuffle()
    base.map(noisy)
    assert rows(take(base.batch(10).dataset(), 1), "index") == list(range(10))
    assert "noise" not in base.batch(2).element_spec
    moved = base.batch(2)
    next(iter(moved))
    assert moved.position == 1
    assert moved.shard(0, 2).position == 0


@pytest.mark.slow
def test_two_iterations_do_not_disturb_each_other() -> None:
    p = Pipeline(source(10)).batch(2)
    first, second = iter(p), iter(p)
    np.testing.assert_array_equal(next(first)["index"], next(second)["index"])
    np.testing.assert_array_equal(next(first)["index"], [2, 3])
    assert p.position == 2


STATE_CHANGES = [
    (lambda s: Pipeline(s(23), seed=1).shuffle().map(noisy).batch(5), ["seed: saved 0, this pipeline 1"]),
    (lambda s: Pipeline(s(24)).shuffle().map(noisy).batch(5), ["source.length: saved 23, this pipeline 24"]),
    (lambda s: Pipeline(s(23)).map(noisy).batch(5), ["stages.0: saved 'shuffle', this pipeline 'map noisy'"]),
    (
        lambda s: Pipeline(s(23)).shuffle().batch(5),
        ["features.noise: saved 'float32(3,)'", "stages.2: saved 'batch(5)', this pipeline 'nothing'"],
    ),
    (lambda s: Pipeline(s(23)).shuffle().map(noisy).batch(6), ["saved 'batch(5)', this pipeline 'batch(6)'"]),
    (lambda s: Pipeline(s(23)).shuffle().map(noisy).batch(5, True), ["this pipeline 'batch(5, drop_remainder=True)'"]),
    (
        lambda s: (
            Pipeline(pipelines.sources.arrays({"index": np.arange(23), "image": np.zeros([23, 2, 3, 1], int)}))
            .shuffle()
            .map(noisy)
            .batch(5)
        ),
        ["source.sha256"],
    ),
]


@pytest.mark.parametrize(("other", "named"), STATE_CHANGES, ids=[named[0] for _, named in STATE_CHANGES])
def test_a_foreign_state_is_refused_with_each_difference(other: Any, named: list[str]) -> None:
    state = Pipeline(source(23)).shuffle().map(noisy).batch(5).state(3)
    p = other(source)
    with pytest.raises(StateMismatchError) as caught:
        p.restore(state)
    for text in named:
        assert text in str(caught.value)
    assert p.position == 0


def test_state_is_small_and_checked() -> None:
    p = Pipeline(source(23)).shuffle().batch(5)
    assert len(json.dumps(p.state(10**15))) < 600
    with pytest.raises(ValueError, match="position=-1"):
        p.state(-1)
    for broken in (None, {}, [3]):
        with pytest.raises(TypeError, match="state: expected a dict"):
            p.restore(broken)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="position"):
        p.restore({**p.state(), "position": "3"})
    with pytest.raises(ValueError, match="position"):
        p.restore({**p.state(), "position": -3})
    with pytest.raises(StateMismatchError, match="seed: saved 'nothing'"):
        p.restore({"position": 3})


def test_t10_one_epoch_ends() -> None:
    p = Pipeline(source(7), seed=3).shuffle().batch(2)
    whole = rows(take(p.dataset(), 12), "index")
    assert rows(arrays(p.epoch()), "index") == whole[:7]
    assert p.position == 4
    assert rows(arrays(p.epoch()), "index") == whole[7:14]
    p.restore(p.state(9))  # in the third epoch
    assert rows(arrays(p.epoch()), "index") == whole[16:21]
    assert p.position == 12
    stacks = Pipeline(source(6)).batch(2).stack(2)
    positions = []
    for _ in range(4):  # of 3 batches each: stacks of batches 0 1, 2 3 | 4 5 | …
        positions.append([stacks.position for _ in stacks.epoch()])
    assert positions == [[1], [2, 3], [4], [5, 6]]
    with pytest.raises(ValueError, match=r"call .batch\(batch_size\)"):
        Pipeline(source(7)).epoch()
