"""A data set gives what its plan's function gives batch by batch, however it is made; equal plans are traced once."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import pipelines
from tftoolkit.pipelines import Pipeline
from tftoolkit.pipelines.plan import plan as plans


@pytest.fixture(scope="module")
def source():
    arrays = {"index": np.arange(37), "image": np.arange(37 * 6, dtype=np.uint8).reshape(37, 2, 3), "name": ["a"] * 37}
    return pipelines.sources.arrays(arrays)


def _plus_one(example):
    return {**example, "index": example["index"] + 1}


@pytest.mark.parametrize(("drop_remainder", "start", "share"), [
    (False, 0, None), (True, 7, None), (False, 12, (1, 2)), (True, 3, (3, 4)), (False, 7, (0, 2)),
])  # fmt: skip
def test_t10_rows_taken_for_many_batches_at_once_are_those_of_each(source, monkeypatch, drop_remainder, start, share):
    monkeypatch.setattr(plans, "_BYTES_AT_ONCE", 300)  # a few batches: runs begin and end within epochs
    p = Pipeline(source, seed=3).shuffle().take(30).repeat(2).batch(8, drop_remainder=drop_remainder)
    if share:
        p = p.shard(*share)
    load, data = p.loader(), p.dataset(start, epochs=3)
    assert p._plan.batches_at_once > 1
    assert data.cardinality() == 3 * p.batches_per_epoch - start
    assert data.element_spec == p.element_spec
    index, count = share or (0, 1)
    assert data.element_spec["index"].shape[0] == (len(range(index, 8, count)) if drop_remainder else None)
    p._position = start
    in_python = (batch for epoch in range(start // p.batches_per_epoch, 3) for batch in p.epoch())
    for number, (batch, same) in enumerate(zip(data, in_python, strict=True), start):
        assert list(batch) == list(same)
        for name, value in load(tf.constant(number, tf.int64)).items():
            np.testing.assert_array_equal(batch[name], value)
            np.testing.assert_array_equal(same[name], value)
    assert p.position == 3 * p.batches_per_epoch


def test_t10_batches_without_a_row_for_a_worker_are_loaded_one_by_one(source):
    p = Pipeline(source).take(33).batch(8).shard(3, 4)  # the last batch has one row
    assert [len(batch["index"]) for batch in p.dataset(epochs=1)] == [2, 2, 2, 2, 0]


def test_t10_only_what_cannot_fail_is_taken_at_once(source):
    """Else an error would come some batches too early."""
    for p in (Pipeline(source).map(_plus_one), Pipeline(pipelines.sources.arrays({"x": [[1], [2, 3]] * 20}))):
        assert p.batch(2, padded=True).dataset() is not None
        assert not p.batch(2, padded=True)._plan.batches_at_once


def test_t10_a_second_data_set_of_an_equal_plan_is_not_traced_again(source):
    def make():
        return Pipeline(source, seed=5).shuffle().map(_plus_one).batch(8)

    first = list(make().dataset(epochs=1).as_numpy_iterator())
    traced = make()._plan.shared()._load_located
    again = list(make().dataset(epochs=1).as_numpy_iterator())
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
    assert make()._plan.shared()._load_located is traced
    assert traced.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("other", [
    lambda p: p.batch(9), lambda p: p.batch(8, drop_remainder=True), lambda p: p.take(30).batch(8),
    lambda p: p.repeat(2).batch(8), lambda p: p.map(_plus_one).batch(8), lambda p: p.batch(8).shard(0, 2),
    lambda p: p.batch(8, drop_remainder=True).stack(2), lambda p: p.shuffle().batch(8),
    lambda p: p.batch(8, padded=True),
])  # fmt: skip
def test_t10_other_plans_share_nothing(source, other):
    plan = Pipeline(source).batch(8)._plan
    assert plan.shared() is Pipeline(source).batch(8)._plan.shared()
    assert other(Pipeline(source))._plan.shared() is not plan.shared()
    assert Pipeline(source, seed=1).batch(8)._plan.shared() is not plan.shared()
    assert Pipeline(source).map(lambda e: e).batch(8)._plan.shared() is not plan.shared()


def test_t10_a_source_that_can_keep_nothing_is_read_all_the_same():
    class Squares:
        __slots__ = ()
        element_spec = {"x": tf.TensorSpec([], tf.int64)}  # noqa: RUF012

        def __len__(self):
            return 5

        def fetch(self, indices):
            return {"x": indices * indices}

        def fingerprint(self):
            return {"kind": "squares"}

        def describe(self, index):
            return f"square {index}"

    batches = list(Pipeline(Squares()).batch(5).dataset(epochs=1))
    np.testing.assert_array_equal(batches[0]["x"], [0, 1, 4, 9, 16])


def test_t10_few_plans_are_kept(source):
    for size in range(1, 20):
        Pipeline(source).batch(size)._plan.shared()
    assert len(vars(source)["_plans"]) <= 16
