"""What pipelines say to bad input: arguments, stages in a wrong order, map functions that cannot be resumed."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import pipelines
from tftoolkit.pipelines import Pipeline


def indices(p: Pipeline, count: int, start: int = 0) -> list[int]:
    return [row for batch in p.dataset(start).take(count) for row in batch["index"].numpy().tolist()]


def source(size: int) -> pipelines.sources.Source:
    return pipelines.sources.arrays({"index": np.arange(size), "image": np.arange(size * 6).reshape(size, 2, 3, 1)})


def noisy(example: dict[str, Any], key: tf.Tensor) -> dict[str, Any]:
    return {**example, "noise": tf.random.stateless_uniform([3], key), "key": key}


def ready() -> Pipeline:
    return Pipeline(source(10))


BAD_CALLS = [
    (lambda: Pipeline({"x": [1]}), TypeError, "source: expected"),
    (lambda: Pipeline(pipelines.sources.arrays({"x": np.zeros([0, 2])})), ValueError, "has 0 examples"),
    (lambda: Pipeline(source(3), seed=-1), ValueError, "seed=-1"),
    (lambda: Pipeline(source(3), seed=0.5), TypeError, "seed: expected an integer, got 0.5"),
    (lambda: Pipeline(source(3), on_error="ignore"), ValueError, "must be 'raise' or 'skip'"),
    (lambda: ready().batch(0), ValueError, "batch_size=0: must be at least 1"),
    (lambda: ready().batch(True), TypeError, "batch_size"),
    (lambda: ready().batch(11, drop_remainder=True), ValueError, "only 10 examples"),
    (lambda: ready().batch(2).batch(2), ValueError, "batched already"),
    (lambda: ready().batch(2).shuffle(), ValueError, "put .shuffle"),
    (lambda: ready().batch(2).map(noisy), ValueError, "put .map"),
    (lambda: ready().shuffle().shuffle(), ValueError, "shuffled already"),
    (lambda: ready().dataset(), ValueError, r"call .batch\(batch_size\)"),
    (lambda: ready().batches_per_epoch, ValueError, r"call .batch\(batch_size\)"),
    (lambda: ready().state(), ValueError, r"call .batch\(batch_size\)"),
    (lambda: ready().batch(2).dataset(start=-1), ValueError, "start=-1"),
    (lambda: ready().batch(2).dataset(start=1.0), TypeError, "start"),
    (lambda: ready().batch(2).dataset(epochs=-1), ValueError, "epochs=-1"),
    (lambda: ready().shard(0, 2), ValueError, "batch"),
    (lambda: ready().batch(4).shard(2, 2), ValueError, "index=2: must be below count=2"),
    (lambda: ready().batch(4).shard(0, 0), ValueError, "count=0"),
    (lambda: ready().batch(4).shard(0, 5), ValueError, "count=5: more workers"),
    (lambda: ready().batch(4).shard(0, 2).shard(0, 2), ValueError, "sharded already"),
    (lambda: ready().map(3), TypeError, "expected a function"),
    (lambda: ready().map(lambda example: example["index"]), TypeError, "must return a dict of tensors, got"),
    (lambda: ready().map(lambda example: {}), ValueError, "empty dict"),
    (lambda: ready().map(lambda example: {"a": {"b": example["index"]}}), TypeError, "dense tensors by name"),
    (lambda: ready().map(lambda example: {"a": tf.ragged.constant([[1], [2, 3]])}), TypeError, "Ragged"),
    (lambda: ready().map(lambda: {}), TypeError, "must take"),
    (lambda: ready().map(lambda a, b, c: {}), TypeError, "3 positional"),
    (lambda: ready().map(lambda example: example["imgae"]), KeyError, "imgae"),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD_CALLS, ids=[text for _, _, text in BAD_CALLS])
def test_bad_input_is_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_stateful_random_ops_are_refused() -> None:
    generator = tf.random.Generator.from_seed(1)

    def in_branch(example: dict[str, Any]) -> dict[str, Any]:
        return {"x": tf.cond(example["index"] > 3, lambda: tf.random.normal([]), lambda: 0.0)}

    for function in (
        lambda example: {"x": tf.random.uniform([2])},
        lambda example: {"x": tf.random.shuffle([1, 2, 3])},
        lambda example: {"x": generator.uniform([2])},
        in_branch,
    ):
        with pytest.raises(ValueError, match=r"take \(example, key\) and use tf.random.stateless"):
            ready().map(function)


def test_stateless_and_python_functions_are_accepted() -> None:
    def through_python(example: dict[str, Any]) -> dict[str, Any]:
        doubled = tf.numpy_function(lambda x: x * 2, [example["index"]], tf.int64)
        return {"index": tf.ensure_shape(doubled, [])}

    p = ready().map(through_python).map(lambda example, key=None: example).batch(5)
    assert indices(p, 2) == list(range(0, 20, 2))


def test_python_control_flow_on_tensors_works() -> None:
    traces = []

    def function(example: dict[str, Any]) -> dict[str, Any]:
        traces.append(1)
        if example["index"] > 6:
            return {"index": example["index"] * 10}
        return {"index": example["index"]}

    p = ready().map(function).batch(5)
    assert indices(p, 2) == [*range(7), 70, 80, 90]
    indices(p, 1, start=1)
    assert len(traces) == 1


def test_an_error_in_a_map_function_surfaces_and_the_position_stays() -> None:
    def checked(example: dict[str, Any]) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_less(example["index"], np.int64(6), "too large")]):
            return {"index": tf.identity(example["index"])}

    p = ready().map(checked).batch(2)
    with pytest.raises(pipelines.SourceError, match=r"arrays, row 6: assertion failed: \[too large"):
        list(p)
    assert p.position == 3
