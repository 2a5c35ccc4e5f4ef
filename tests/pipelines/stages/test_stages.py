"""take, repeat, filter, window, padded batches, stack, prefetch: exact contents, and what is said to bad input.

A long file: every stage that has no file of its own, and what all of them refuse.
"""

import functools
import itertools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, StateMismatchError, sources
from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.source import fetch_in_python


def numbers(count: int = 10) -> Pipeline:
    return Pipeline(sources.arrays({"i": np.arange(count)}), seed=1)


@functools.cache
def batches_of(p: Pipeline, epoch: int) -> list[dict[str, Any]]:
    """Read once for all features, since it is making the data set that takes time."""
    return list(p.dataset(epoch * p.batches_per_epoch, epochs=epoch + 1))


def epoch_of(p: Pipeline, name: str = "i", epoch: int = 0) -> list[Any]:
    """The feature's batches in one epoch, as lists."""
    features = [batch[name] for batch in batches_of(p, epoch)]
    return [f.to_list() if isinstance(f, tf.RaggedTensor) else f.numpy().tolist() for f in features]


def keyed(example: dict[str, Any], key: tf.Tensor) -> dict[str, Any]:
    return {**example, "key": key}


# ---- take, repeat


def test_take() -> None:
    assert epoch_of(numbers().take(7).batch(3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert epoch_of(numbers().take(10).batch(10)) == [list(range(10))]
    shuffled = numbers().shuffle()
    [whole] = epoch_of(shuffled.batch(10), epoch=1)
    assert epoch_of(shuffled.take(4).batch(4), epoch=1) == [whole[:4]]
    assert sorted(epoch_of(numbers().take(4).shuffle().batch(4), epoch=1)[0]) == [0, 1, 2, 3]


def test_repeat_lets_batches_reach_over_borders() -> None:
    p = numbers(5).repeat(3).batch(4)
    assert p.batches_per_epoch == 4
    assert epoch_of(p) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1], [2, 3, 4]]


def test_repeat_keeps_order_and_keys_of_the_single_epochs() -> None:
    single = numbers(5).shuffle().map(keyed).batch(5).dataset(epochs=4)
    twice = numbers(5).shuffle().repeat(2).map(keyed).batch(10).dataset(epochs=2)
    for name in ("i", "key"):
        expected = np.concatenate([batch[name] for batch in single])
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in twice]), expected)


def test_shuffle_after_repeat_mixes_its_epochs() -> None:
    p = numbers(5).repeat(4).shuffle().map(keyed).batch(20)
    [order], [keys] = epoch_of(p), epoch_of(p, "key")
    assert sorted(order) == sorted([*range(5)] * 4)
    assert len(set(order[:5])) < 5 or len(set(order[5:10])) < 5
    assert len(set(map(tuple, keys))) == 20


# ---- filter


def even(example: dict[str, Any]) -> tf.Tensor:
    return example["i"] % 2 == 0


def test_filter() -> None:
    p = numbers().filter(even)
    assert epoch_of(p.batch(3)) == [[0, 2, 4], [6, 8]]
    assert [sorted(epoch_of(p.shuffle().batch(5), epoch=e)[0]) for e in range(2)] == [[0, 2, 4, 6, 8]] * 2
    assert epoch_of(p.filter(lambda example: example["i"] > 3).batch(5)) == [[4, 6, 8]]
    tripled = numbers().map(lambda example: {"i": example["i"] * 3}).filter(even).take(2)
    assert epoch_of(tripled.batch(5)) == [[0, 6]]


def test_filter_leaves_keys_alone() -> None:
    [whole] = epoch_of(numbers().map(keyed).batch(10), "key")
    assert epoch_of(numbers().filter(even).map(keyed).batch(10), "key") == [whole[::2]]


def test_filter_over_more_elements_than_are_read_at_once() -> None:
    p = numbers(1000).filter(lambda example: example["i"] % 7 == 3)
    assert epoch_of(p.batch(1000)) == [list(range(3, 1000, 7))]


def test_a_filter_plan_is_kept_and_used_again(tmp_path: Path) -> None:
    file, calls = tmp_path / "plan.npz", []

    def count(value: Any) -> Any:
        calls.append(1)
        return value

    def counted(example: dict[str, Any]) -> dict[str, Any]:
        return {"i": tf.ensure_shape(tf.numpy_function(count, [example["i"]], tf.int64), [])}

    def make(p: Pipeline, predicate: Any = even) -> Pipeline:
        return p.map(counted).filter(predicate, plan=file)

    expected = [list(range(0, 10, 2))]
    assert epoch_of(make(numbers()).batch(5)) == expected
    assert len(calls) == 10 + 5
    assert epoch_of(make(numbers()).batch(5)) == expected
    assert len(calls) == 10 + 5 + 5
    assert epoch_of(make(numbers(12)).batch(6)) == [list(range(0, 12, 2))]  # another source: made anew

    def odd(example: dict[str, Any]) -> tf.Tensor:
        return example["i"] % 2 == 1

    assert epoch_of(make(numbers(12), odd).batch(6)) == [list(range(1, 12, 2))]
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"plan='.*plan.npz': cannot be read .*; delete it"):
        make(numbers())
    with pytest.raises(SourceError, match=r"plan='.*': cannot be written"):
        numbers().filter(even, plan=tmp_path / "nothing" / "plan.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.npz"]


def test_what_a_filter_keeps_stands_in_the_state() -> None:
    def keep(example: dict[str, Any], more: int = 0) -> tf.Tensor:
        return example["i"] % 2 == more

    one = numbers().filter(keep).batch(2)
    other = numbers().filter(lambda example: keep(example, 1)).batch(2)
    with pytest.raises(
        StateMismatchError, match=r"stages.0: saved 'filter keep \(keeps 5, \w+\)', this pipeline 'filter"
    ):
        other.restore(one.state(1))


# ---- window


def test_window() -> None:
    assert epoch_of(numbers().window(3).batch(2)) == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8]]]
    assert epoch_of(numbers(5).window(3, shift=1).batch(9)) == [[[0, 1, 2], [1, 2, 3], [2, 3, 4]]]
    assert epoch_of(numbers(6).window(2, shift=3).batch(9)) == [[[0, 1], [3, 4]]]
    assert epoch_of(numbers(4).window(2).window(2).batch(1)) == [[[[0, 1], [2, 3]]]]


@pytest.mark.slow
def test_windows_over_shuffled_elements_and_shuffled_windows() -> None:
    p = numbers().shuffle()
    for epoch in range(2):
        [order] = epoch_of(p.batch(10), epoch=epoch)
        assert epoch_of(p.window(5).batch(2), epoch=epoch) == [[order[:5], order[5:]]]
        [windows] = epoch_of(numbers().window(2).shuffle().batch(5), epoch=epoch)
        assert sorted(windows) == [[i, i + 1] for i in range(0, 10, 2)]


@pytest.mark.slow
def test_keys_before_and_behind_a_window() -> None:
    p = numbers(6).map(keyed).window(2, shift=1)
    [inner] = epoch_of(p.batch(5), "key")
    [single] = epoch_of(numbers(6).map(keyed).batch(6), "key")
    assert inner == [[single[i], single[i + 1]] for i in range(5)]
    outer = epoch_of(p.map(keyed).batch(5), "key")[0] + epoch_of(p.map(keyed).batch(5), "key", epoch=1)[0]
    assert len(set(map(tuple, outer))) == 10


def test_a_feature_of_no_elements() -> None:
    p = Pipeline(sources.arrays({"x": np.zeros([6, 0, 3]), "i": np.arange(6)}))
    batch = next(iter(p.map(lambda example: example).window(2).batch(3, padded=True)))
    assert batch["x"].shape == [3, 2, 0, 3]


# ---- shapes that vary


class Growing:
    """Example i has features of every kind of shape that depends on i."""

    element_spec: ClassVar[dict[str, tf.TensorSpec]] = {
        "i": tf.TensorSpec([], tf.int64),
        "ragged": tf.TensorSpec([None], tf.int32),
        "wide": tf.TensorSpec([None, 2], tf.float32),
        "words": tf.TensorSpec([None], tf.string),
        "flags": tf.TensorSpec([None], tf.bool),
    }

    def __len__(self) -> int:
        return 6

    def fetch(self, indices: tf.Tensor) -> dict[str, Any]:
        return fetch_in_python(self._read, indices, self.element_spec)

    def _read(self, rows: np.ndarray) -> list[Any]:
        ragged = [np.arange(i) for i in rows]
        words = [np.array([b"w"] * i, object) for i in rows]
        return [rows, ragged, [np.ones([i, 2]) for i in rows], words, [np.ones(i, bool) for i in rows]]

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "growing"}


def picture(example: dict[str, Any]) -> dict[str, Any]:
    i = tf.cast(example["i"], tf.int32)
    pixels = tf.reshape(tf.range((i + 1) * 2 * (5 - i)), [i + 1, 2, 5 - i])
    return {**example, "picture": tf.ensure_shape(pixels, [None, 2, None])}


def test_ragged_batches() -> None:
    p = Pipeline(Growing()).batch(4)
    assert isinstance(p.element_spec["ragged"], tf.RaggedTensorSpec)
    assert epoch_of(p, "ragged") == [[[], [0], [0, 1], [0, 1, 2]], [[0, 1, 2, 3], [0, 1, 2, 3, 4]]]
    assert epoch_of(p, "words")[0] == [[], [b"w"], [b"w"] * 2, [b"w"] * 3]
    assert epoch_of(p, "wide")[1] == [[[1.0, 1.0]] * 4, [[1.0, 1.0]] * 5]


def test_padded_batches_of_every_shape() -> None:
    p = Pipeline(Growing()).map(picture).batch(4, padded=True)
    assert p.element_spec["ragged"].shape.as_list() == [None, None]
    assert p.element_spec["picture"].shape.as_list() == [None, None, 2, None]
    first, second = epoch_of(p, "ragged")
    assert first == [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 2]]
    assert second == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 4]]
    assert epoch_of(p, "flags")[0] == [[k < i for k in range(3)] for i in range(4)]
    assert epoch_of(p, "words")[0] == [[b"w"] * i + [b""] * (3 - i) for i in range(4)]
    assert np.array(epoch_of(p, "wide")[0]).sum((1, 2)).tolist() == [0, 2, 4, 6]
    for numbers_, pictures in zip(epoch_of(p), epoch_of(p, "picture"), strict=True):
        expected = np.zeros([len(numbers_), max(numbers_) + 1, 2, 5 - min(numbers_)], int)
        for row, i in enumerate(numbers_):
            expected[row, : i + 1, :, : 5 - i] = np.arange((i + 1) * 2 * (5 - i)).reshape(i + 1, 2, 5 - i)
        assert pictures == expected.tolist()


def test_padding_to_given_sizes_and_with_given_values() -> None:
    sizes = {"ragged": 7, "wide": (6, 4), "picture": (None, 3, 6), "i": ()}
    values = {"ragged": -1, "wide": 0.5, "words": "-", "flags": True, "picture": 99}
    p = Pipeline(Growing()).map(picture).batch(3, padded=True, pad_to=sizes, padding_values=values)
    shapes = {name: spec.shape.as_list() for name, spec in p.element_spec.items()}
    assert shapes["ragged"] == [3, 7]
    assert shapes["wide"] == [3, 6, 4]
    assert shapes["picture"] == [3, None, 3, 6]
    assert epoch_of(p, "ragged")[0] == [[-1] * 7, [0] + [-1] * 6, [0, 1] + [-1] * 5]
    [_, wide] = epoch_of(p, "wide")
    assert wide[0] == [[1, 1, 0.5, 0.5]] * 3 + [[0.5] * 4] * 3
    assert epoch_of(p, "words")[0] == [[b"-", b"-"], [b"w", b"-"], [b"w", b"w"]]
    assert epoch_of(p, "flags")[0] == [[True, True]] * 3
    assert (
        np.array(epoch_of(p, "picture")[0][0]).tolist()
        == np.pad(np.arange(10).reshape(1, 2, 5), [(0, 2), (0, 1), (0, 1)], constant_values=99).tolist()
    )
    dense = Pipeline(sources.arrays({"x": np.ones([2, 2, 3], np.uint8)})).batch(2, padded=True, pad_to={"x": (2, 5)})
    assert epoch_of(dense, "x") == [[[[1, 1, 1, 0, 0]] * 2] * 2]
    assert dense.element_spec["x"].shape == [2, 2, 5]


@pytest.mark.parametrize(
    "dtypes",
    [
        ["bool", "string", "bfloat16"],
        pytest.param(["uint16", "uint64", "int8", "complex64", "float64"], marks=pytest.mark.slow),
    ],
    ids=", ".join,
)
def test_padding_of_every_dtype(dtypes: list[str]) -> None:
    def cast(example: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for dtype in dtypes:
            value = example["ragged"][:, tf.newaxis] + tf.range(1, tf.cast(example["i"], tf.int32) + 2)
            value = tf.as_string(value) if dtype == "string" else tf.cast(value, dtype)
            made |= {f"{dtype}, varied": value, f"{dtype}, ragged": tf.reshape(value, [-1])}
        return made

    for batch in Pipeline(Growing()).map(cast).batch(4, padded=True).dataset(epochs=1):
        for dtype in dtypes:
            varied, ragged = (batch[f"{dtype}, {shape}"] for shape in ("varied", "ragged"))
            assert varied.dtype == ragged.dtype == tf.as_dtype(dtype)
            empty = varied[0].numpy() if len(varied) == 4 else varied[0, :, 5].numpy()
            assert not any(empty.reshape(-1).tolist())


@pytest.mark.slow
def test_workers_without_rows_get_empty_batches_of_every_shape() -> None:
    base = Pipeline(Growing()).map(picture)
    for p in (base.batch(4, padded=True), Pipeline(Growing()).batch(4), Pipeline(Growing()).pack(3, "ragged").batch(4)):
        dataset = p.shard(3, 4).dataset(epochs=1)
        spec = dataset.element_spec
        _, empty = dataset
        for name, feature in empty.items():
            assert feature.shape[0] == 0
            assert feature.dtype == spec[name].dtype
            assert feature.shape.rank == spec[name].shape.rank


# ---- stack, prefetch


def test_stack() -> None:
    p = numbers().shuffle().map(keyed).batch(2).stack(3)
    assert p.element_spec["key"].shape == [3, 2, 2]
    flat = list(numbers().shuffle().map(keyed).batch(2).dataset(epochs=3).as_numpy_iterator())
    stacks = list(p.dataset(epochs=3).as_numpy_iterator())
    assert len(stacks) == 5  # over the border of epochs
    for number, stack in enumerate(stacks):
        for part, batch in enumerate(flat[3 * number : 3 * number + 3]):
            np.testing.assert_array_equal(stack["i"][part], batch["i"])
            np.testing.assert_array_equal(stack["key"][part], batch["key"])
    assert len(list(p.dataset(epochs=1))) == 1  # the other two batches do not fill a stack
    p.restore(p.state(3))
    np.testing.assert_array_equal(next(iter(p))["i"], stacks[3]["i"])
    assert p.position == 4


@pytest.mark.parametrize("device", [None, "/CPU:0"])
def test_prefetch(device: str | None) -> None:
    for other_name in ("CPU:0", "/device:CPU:0"):
        numbers().batch(5).prefetch(2, other_name)
    p = numbers().batch(5).prefetch(2, device)
    assert epoch_of(p) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [batch["i"].numpy().tolist() for batch in itertools.islice(p, 1)] == [[0, 1, 2, 3, 4]]


# ---- functions that do not keep their word


def test_a_vectorized_function_that_loses_rows_is_told() -> None:
    p = numbers().map(Vectorized("halved", lambda rows: {"i": rows["i"][::2]})).batch(4)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"map: halved must return as many rows as it gets; got:.* .4. .returned:. .2.",
    ):
        list(p.dataset(epochs=1))


def test_functions_that_return_no_dense_tensors() -> None:
    for value in (tf.ragged.constant([[1], [2, 3]]), tf.sparse.from_dense([0, 1])):
        with pytest.raises(
            TypeError, match=r"map: <lambda> must return dense tensors by name, got 'x': (Ragged|Sparse)"
        ):
            numbers().map(lambda example, value=value: {"x": value})
    with pytest.raises(ValueError, match=r"the rank of 'x' is not known; state it with tf.ensure_shape"):
        numbers().map(lambda example: {"x": tf.numpy_function(lambda: 1, [], tf.int64)})


def test_functions_with_a_state_are_refused() -> None:
    counter = tf.Variable(0)
    text = r"changes a variable \(AssignAddVariableOp\)"

    def counted(example: dict[str, Any]) -> dict[str, Any]:
        return {"i": counter.assign_add(1)}

    def sampled(example: dict[str, Any]) -> dict[str, Any]:
        found, _, _ = tf.random.uniform_candidate_sampler([[example["i"]]], 1, 2, True, 100)
        return {"i": found}

    with pytest.raises(ValueError, match=text):
        numbers().map(counted)
    with pytest.raises(ValueError, match=text):
        numbers().filter(lambda example: counter.assign_add(1) > 0)
    with pytest.raises(ValueError, match=r"sampled draws random numbers .*UniformCandidateSampler"):
        numbers().map(sampled)
    with pytest.raises(TypeError, match="map: the parameters of dict cannot be found out"):
        numbers().map(dict)


# ---- bad input

MIXTURE = {"a": (sources.arrays({"i": [1]}), 1), "b": (sources.arrays({"i": [2, 3]}), 1)}

BAD_CALLS = [
    (lambda: numbers().take(0), ValueError, "count=0: must be at least 1"),
    (lambda: numbers().take(11), ValueError, "count=11: there are only 10 elements to take"),
    (lambda: numbers().take(2.0), TypeError, "count: expected an integer, got 2.0"),
    (lambda: numbers().repeat(0), ValueError, "count=0"),
    (lambda: numbers().repeat(2**61), ValueError, "an epoch of 2305843009213693952 times 10 elements is too long"),
    (lambda: numbers().filter(3), TypeError, "filter: expected a function of an example, got 3"),
    (lambda: numbers().filter(lambda example: example["i"]), TypeError, "filter: <lambda> must return a bool scalar"),
    (lambda: numbers().filter(lambda example: example["i"] > 99), ValueError, "is true for none of the 10 examples"),
    (lambda: numbers().filter(lambda example: tf.random.uniform([]) > 0.5), ValueError, "draws random numbers"),
    (lambda: numbers().shuffle().filter(even), ValueError, r"filter: its plan is made once .*\(shuffle\)"),
    (lambda: numbers().map(keyed).filter(even), ValueError, r"filter: its plan is made once .*\(map keyed\)"),
    (lambda: Pipeline(sources.mix(MIXTURE)).filter(even), ValueError, "filter: .*a mixture deals out other examples"),
    (lambda: Pipeline(sources.mix(MIXTURE)).cache(), ValueError, "cache: .*a mixture deals out other examples"),
    (lambda: numbers().window(0), ValueError, "size=0"),
    (lambda: numbers().window(11), ValueError, "size=11: larger than an epoch, which has 10 elements"),
    (lambda: numbers().window(2, shift=0), ValueError, "shift=0"),
    (lambda: Pipeline(Growing()).window(2), ValueError, "'ragged', 'wide', 'words', 'flags' differ in shape"),
    (lambda: Pipeline(Growing()).map(picture).batch(2), ValueError, r"'picture' differ in shape .*padded=True"),
    (lambda: numbers().batch(2, pad_to={"i": 3}), ValueError, "pad_to and padding_values need padded=True"),
    (lambda: Pipeline(Growing()).batch(2, padded=True, pad_to={"x": 3}), ValueError, "pad_to: there is no feature 'x'"),
    (
        lambda: Pipeline(Growing()).batch(2, padded=True, pad_to=3),
        TypeError,
        "pad_to: expected a dict feature -> value",
    ),
    (lambda: Pipeline(Growing()).batch(2, padded=True, pad_to={"ragged": -1}), ValueError, r"pad_to\['ragged'\]=-1"),
    (lambda: Pipeline(Growing()).batch(2, padded=True, pad_to={"ragged": 2.5}), TypeError, r"pad_to\['ragged'\]"),
    (lambda: Pipeline(Growing()).batch(2, padded=True, pad_to={"wide": 4}), ValueError, "has 2 dimensions"),
    (
        lambda: Pipeline(Growing()).batch(2, padded=True, pad_to={"wide": (4, 1)}),
        ValueError,
        "smaller than the examples",
    ),
    (lambda: Pipeline(Growing()).batch(2, padded=True, pad_to={"wide": (4, None)}), ValueError, "write 2 for"),
    (
        lambda: Pipeline(Growing()).batch(2, padded=True, padding_values={"flags": 1}),
        TypeError,
        r"padding_values\['flags'\]=1: expected a scalar of bool",
    ),
    (
        lambda: Pipeline(Growing()).batch(2, padded=True, padding_values={"ragged": 0.5}),
        TypeError,
        r"padding_values\['ragged'\]=0.5: expected a scalar of int32",
    ),
    (lambda: numbers().stack(2), ValueError, r"call .batch\(batch_size\)"),
    (lambda: numbers().batch(5).stack(0), ValueError, "count=0"),
    (lambda: numbers().batch(5).stack(2).stack(2), ValueError, "stacked already"),
    (
        lambda: numbers().batch(4).stack(2),
        ValueError,
        "stack: batches must all have one shape, but that of 'i' differs",
    ),
    (lambda: numbers().batch(5).prefetch(0), ValueError, "buffer_size=0"),
    (
        lambda: numbers().batch(5).prefetch(2, "/TPU:7"),
        ValueError,
        "device='/TPU:7': there is no such device, only CPU:0",
    ),
    (lambda: numbers().prefetch(2), ValueError, r"call .batch\(batch_size\)"),
    (lambda: Pipeline(sources.mix(MIXTURE)).take(2).shuffle(), ValueError, "this source shuffles itself"),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD_CALLS, ids=[text for *_, text in BAD_CALLS])
def test_bad_input_is_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
