"""Batches of similar length: exact membership, padding, epochs, and what is said to bad input."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit.pipelines import Pipeline, sources
from tftoolkit.pipelines.sources.source import fetch_in_python
from tftoolkit.pipelines.stages.bucketing import assign

LENGTHS = [3, 0, 5, 12, 7, 1, 4, 6, 2, 3, 8, 5, 1, 11, 9, 4, 3, 5, 6, 2, 4, 10]
BOUNDARIES = [3, 6, 12]


class Sequences:
    """Sequence i holds i + 1, as often as it is long."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths_ = lengths
        self.element_spec = {"tokens": tf.TensorSpec([None], tf.int32), "number": tf.TensorSpec([], tf.int64)}

    def __len__(self) -> int:
        return len(self.lengths_)

    def fetch(self, indices: tf.Tensor) -> dict[str, Any]:
        return fetch_in_python(lambda rows: [[np.full(self.lengths_[i], i + 1) for i in rows], rows], indices,
                               self.element_spec)  # fmt: skip

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "sequences", "length": len(self)}

    def describe(self, index: int) -> str:
        return f"sequence {index}"


def ready(lengths: list[int] = LENGTHS) -> Pipeline:
    return Pipeline(Sequences(lengths), seed=3)


def epoch_of(p: Pipeline, epoch: int = 0) -> list[dict[str, np.ndarray]]:
    return list(p.dataset(epoch * p.batches_per_epoch, epochs=epoch + 1).as_numpy_iterator())


def epochs_of(p: Pipeline, count: int) -> list[list[dict[str, np.ndarray]]]:
    """The first epochs, out of one data set."""
    batches = list(p.dataset(epochs=count).as_numpy_iterator())
    return [batches[k : k + p.batches_per_epoch] for k in range(0, len(batches), p.batches_per_epoch)]


def bucket(length: int) -> int:
    return next(i for i, limit in enumerate(BOUNDARIES) if length <= limit)


def check_batch(batch: dict[str, np.ndarray], width: int | None = None) -> int:
    """Exact contents; returns the bucket."""
    numbers = batch["number"].tolist()
    buckets = {bucket(LENGTHS[i]) for i in numbers}
    assert len(buckets) == 1
    width = width or max(LENGTHS[i] for i in numbers)
    rows = [[i + 1] * LENGTHS[i] + [0] * (width - LENGTHS[i]) for i in numbers]
    assert batch["tokens"].tolist() == rows
    return buckets.pop()


@pytest.mark.parametrize("shuffled", [False, True])
def test_every_example_once_and_only_with_its_like(shuffled: bool) -> None:
    p = (ready().shuffle() if shuffled else ready()).bucket(4, BOUNDARIES)
    for batches in epochs_of(p, 2):
        assert len(batches) == p.batches_per_epoch == 2 + 2 + 2
        assert sorted(i for batch in batches for i in batch["number"].tolist()) == list(range(len(LENGTHS)))
        for batch in batches:
            assert len(batch["number"]) <= 4
            check_batch(batch)


def test_unshuffled_batches_stand_where_their_last_member_does() -> None:
    first, second = ([batch["number"].tolist() for batch in one] for one in epochs_of(ready().bucket(4, BOUNDARIES), 2))
    batches = first
    assert all(numbers == sorted(numbers) for numbers in batches)
    assert [numbers[-1] for numbers in batches] == sorted(numbers[-1] for numbers in batches)
    assert batches[0] == [0, 1, 5, 8]
    assert second == first


def test_shuffled_epochs_differ_in_batches_and_their_order() -> None:
    p = ready().shuffle().bucket(4, BOUNDARIES)
    epochs = [[tuple(sorted(batch["number"].tolist())) for batch in one] for one in epochs_of(p, 3)]
    assert len({frozenset(batches) for batches in epochs}) == 3
    orders = {tuple(bucket(LENGTHS[batch[0]]) for batch in batches) for batches in epochs}
    assert len(orders) > 1


def test_a_batch_size_for_each_bucket_and_no_remainder() -> None:
    p = ready().shuffle().bucket([4, 3, 2], BOUNDARIES, drop_remainder=True)
    assert p.batches_per_epoch == 8 // 4 + 8 // 3 + 6 // 2
    seen = set()
    for batches in epochs_of(p, 6):
        for batch in batches:
            assert len(batch["number"]) == [4, 3, 2][check_batch(batch)]
        numbers = [i for batch in batches for i in batch["number"].tolist()]
        assert len(numbers) == len(set(numbers)) == 8 + 6 + 6
        seen |= set(numbers)
    assert seen == set(range(len(LENGTHS)))  # others are left out in every epoch


def test_padding_up_to_the_boundary_gives_few_shapes() -> None:
    p = ready().shuffle().bucket(4, BOUNDARIES, pad_to_boundary=True)
    assert p.element_spec["tokens"].shape.as_list() == [None, None]
    widths = set()
    for batch in epoch_of(p, 1):
        width = batch["tokens"].shape[1]
        assert width == BOUNDARIES[check_batch(batch, width)]
        widths.add(width)
    assert widths == set(BOUNDARIES)


def test_padding_values() -> None:
    p = ready().bucket(4, BOUNDARIES, padding_values={"tokens": -1})
    assert epoch_of(p)[0]["tokens"].tolist() == [[1, 1, 1], [-1, -1, -1], [6, -1, -1], [9, 9, -1]]


def test_pictures_are_bucketed_by_height() -> None:
    def picture(example: dict[str, Any]) -> dict[str, Any]:
        height = tf.size(example["tokens"])
        return {
            "image": tf.ensure_shape(tf.ones([height, height + 1, 2]), [None, None, 2]),
            "number": example["number"],
        }

    p = ready().map(picture).shuffle().bucket(4, BOUNDARIES, "image")
    for batch in epoch_of(p):
        heights = [LENGTHS[i] for i in batch["number"].tolist()]
        assert batch["image"].shape == (len(heights), max(heights), max(heights) + 1, 2)
        assert batch["image"].sum((1, 2, 3)).tolist() == [2 * h * (h + 1) for h in heights]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=50), st.tuples(*[st.integers(1, 5)] * 3), st.booleans())
def test_assignments_against_brute_force(lengths: list[int], sizes: tuple[int, ...], drop: bool) -> None:
    members, counts, bucket_of, first_of = assign(np.array(lengths), BOUNDARIES, sizes, drop)
    expected = [[i for i, length in enumerate(lengths) if bucket(length) == b] for b in range(3)]
    assert members.tolist() == [i for one in expected for i in one]
    assert counts.tolist() == [len(one) for one in expected]
    batches = [expected[b][first : first + sizes[b]] for b, first in zip(bucket_of, first_of, strict=True)]
    whole = [one[k : k + sizes[b]] for b, one in enumerate(expected) for k in range(0, len(one), sizes[b])]
    kept = [batch for batch in whole if not drop or len(batch) == sizes[bucket(lengths[batch[0]])]]
    assert batches == sorted(kept, key=lambda batch: batch[-1])


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=20, max_size=30), st.integers(4, 5), st.integers(0, 2**63 - 1), st.data())
def test_any_are_resumed_and_sharded(lengths: list[int], size: int, seed: int, data: st.DataObject) -> None:
    p = Pipeline(Sequences(lengths), seed=seed).shuffle().bucket(size, BOUNDARIES)
    resumed_and_sharded(p, data.draw(st.integers(0, 2 * p.batches_per_epoch)), range(3))


@pytest.mark.slow
def test_resumed_and_sharded() -> None:
    resumed_and_sharded(ready().shuffle().bucket(4, BOUNDARIES), 5, (1,))


def resumed_and_sharded(p: Pipeline, start: int, workers: Iterable[int]) -> None:
    """As one worker, and as these ones of three."""
    whole = list(p.dataset().take(start + 3).as_numpy_iterator())
    for count, indices in ((1, (0,)), (3, workers)):
        for index in indices:
            share = list(p.shard(index, count).dataset(start).take(3).as_numpy_iterator())
            for one, other in zip(whole[start:], share, strict=True):
                assert one["number"][index::count].tolist() == other["number"].tolist()


MIXTURE = {"a": (Sequences([3, 4]), 1), "b": (Sequences([5]), 1)}

BAD_CALLS = [
    (lambda: ready().bucket(0, [12]), ValueError, "batch_size=0: must be at least 1"),
    (lambda: ready().bucket(2.5, [12]), TypeError, "batch_size: expected a list of integers, got 2.5"),
    (lambda: ready().bucket([2, 3], [12]), ValueError, r"batch_size=\[2, 3\]: must be one number, or one for each of"),
    (lambda: ready().bucket([2, 0], [4, 12]), ValueError, r"batch_size\[1\]=0"),
    (lambda: ready().bucket(2, []), ValueError, "boundaries: the list is empty"),
    (lambda: ready().bucket(2, 12), TypeError, "boundaries: expected a list of integers, got 12"),
    (lambda: ready().bucket(2, [4.5, 12]), TypeError, r"boundaries\[0\]: expected an integer, got 4.5"),
    (lambda: ready().bucket(2, [12, 4]), ValueError, r"boundaries=\[12, 4\]: must be ascending"),
    (lambda: ready().bucket(2, [4, 4, 12]), ValueError, r"boundaries=\[4, 4, 12\]: must be ascending"),
    (lambda: ready().bucket(2, [4]), ValueError, "boundaries: the last one is 4, but sequence 3 has the length 12"),
    (
        lambda: ready().bucket(2, [12], "text"),
        ValueError,
        "feature: there is no feature 'text', only 'tokens', 'number'",
    ),
    (lambda: ready().bucket(2, [12], "number"), ValueError, r"feature='number': has the shape \(\)"),
    (lambda: ready([1, 2]).bucket(3, [12], drop_remainder=True), ValueError, "batch_size=.*no batch is left"),
    (lambda: ready().bucket(2, [12], padding_values={"tokens": None}), TypeError, "expected a scalar of int32"),
    (lambda: ready().bucket(2, [12], padding_values={"x": 0}), ValueError, "padding_values: there is no feature 'x'"),
    (lambda: ready().batch(2).bucket(2, [12]), ValueError, "batched already"),
    (lambda: ready().bucket(2, [12]).stack(2), ValueError, "stack: batches must all have one shape"),
    (lambda: ready().shuffle().take(3).bucket(2, [12]), ValueError, r"put .shuffle\(\) right before it"),
    (lambda: Pipeline(sources.mix(MIXTURE)).bucket(2, [12]), ValueError, "a mixture deals out other examples"),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD_CALLS, ids=[text for *_, text in BAD_CALLS])
def test_bad_input_is_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
