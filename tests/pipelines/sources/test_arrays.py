"""The arrays source: rows in any order, ragged ones, mapped files not copied, and what is said to bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, sources


def test_fetch_gives_the_rows_asked_for() -> None:
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    source = sources.arrays({"x": x, "name": [f"n{i}" for i in range(11)], "flag": np.arange(11) % 2 == 0})
    assert len(source) == 11
    batch = source.fetch(tf.constant([7, 0, 7], tf.int64))
    np.testing.assert_array_equal(batch["x"], x[[7, 0, 7]])
    assert batch["name"].numpy().tolist() == [b"n7", b"n0", b"n7"]
    assert batch["flag"].numpy().tolist() == [False, True, False]
    assert source.element_spec["x"] == tf.TensorSpec([3], tf.float32)


def test_later_changes_of_the_array_do_not_reach_the_source() -> None:
    x = np.zeros(3)
    source = sources.arrays({"x": x})
    x[:] = 1
    assert source.fetch(tf.constant([0, 1, 2], tf.int64))["x"].numpy().tolist() == [0, 0, 0]


def test_fingerprint_follows_the_contents() -> None:
    def fingerprint(**features: Any) -> dict[str, Any]:
        return sources.arrays(features).fingerprint()

    assert fingerprint(x=[1, 2]) == fingerprint(x=np.array([1, 2], np.int32))
    different = [
        fingerprint(x=[1, 2]),
        fingerprint(x=[1, 3]),
        fingerprint(y=[1, 2]),
        fingerprint(x=np.array([1, 2])),
        fingerprint(x=["1", "2"]),
        fingerprint(x=["12", ""]),
        fingerprint(x=tf.constant([1, 2], tf.bfloat16)),
        fingerprint(x=np.array([True, False])),
    ]
    assert len({one["sha256"] for one in different}) == len(different)


def test_mapped_files_are_read_row_by_row_and_not_copied(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    p = Pipeline(sources.arrays({"x": mapped, "i": np.arange(50)}), seed=1).shuffle().batch(8)
    for batch in p.dataset(epochs=1):
        np.testing.assert_array_equal(batch["x"], x[batch["i"].numpy()])
    assert p._plan.source._tensors.keys() == {"i"}
    assert sources.arrays({"x": mapped[10:]}).fetch(tf.constant([0], tf.int64))["x"][0, 0, 0] == x[10, 0, 0]
    assert sources.arrays({"x": mapped}).fetch(tf.zeros([0], tf.int64))["x"].shape == (0, 3, 2)


def test_a_mapped_file_that_is_another_is_noticed(tmp_path: Path) -> None:
    def fingerprint(values: np.ndarray) -> Any:
        np.save(tmp_path / "x.npy", values)
        return sources.arrays({"x": np.load(tmp_path / "x.npy", mmap_mode="r")}).fingerprint()

    x = np.zeros([1000, 100])
    first = fingerprint(x)
    assert fingerprint(x) == first
    x[-1, -1] = 1
    assert fingerprint(x) != first
    assert fingerprint(np.zeros([1001, 100])) != first


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        ([[1, 2], [], [3]], tf.int32),
        ([[1.5], [2.5, 3.5]], tf.float32),
        ([np.arange(3), np.arange(0), np.arange(2)], tf.int64),
        ([["a"], ["b", "c"]], tf.string),
        ([np.ones([2, 3]), np.zeros([0, 3]), np.ones([1, 3])], tf.float64),
        (tf.ragged.constant([[1], [2, 3]], row_splits_dtype=tf.int32), tf.int32),
    ],
)
def test_rows_of_different_lengths_become_ragged(rows: Any, dtype: tf.DType) -> None:
    source = sources.arrays({"x": rows})
    assert source.element_spec["x"].dtype == dtype
    assert source.element_spec["x"].shape[0] is None
    backwards = source.fetch(tf.range(len(source) - 1, -1, -1, dtype=tf.int64))["x"]
    for row, expected in zip(backwards, list(rows)[::-1], strict=True):
        expected = np.array(expected, dtype.as_numpy_dtype)
        np.testing.assert_array_equal(row, expected.astype("S") if dtype == tf.string else expected)
    shorter = sources.arrays({"x": [rows[0], rows[1][:0], *list(rows)[2:]]})
    assert shorter.fingerprint() != source.fingerprint() or len(rows[1]) == 0


@pytest.mark.parametrize(
    ("features", "error", "text"),
    [
        ({}, ValueError, "the dict is empty"),
        ([1, 2], TypeError, "expected a dict of arrays, got list"),
        ({"x": 3}, ValueError, r"features\['x'\]: got a single value"),
        ({"x": [1, 2], "y": [1, 2, 3]}, ValueError, "different lengths .x: 2, y: 3."),
        ({"x": [[1, 2], 3]}, ValueError, r"features\['x'\]: the rows have different shapes"),
        ({"x": [np.zeros([2, 3]), np.zeros([2, 4])]}, ValueError, r"features\['x'\]: the rows have different shapes"),
        ({"x": [object()]}, (TypeError, ValueError), r"features\['x'\]: not an array"),
        ({"x": tf.ragged.constant([[[1], []], [[2, 3]]])}, ValueError, r"features\['x'\]: only the first dimension"),
        ({1: [1, 2]}, TypeError, "names must be strings, got 1"),
    ],
)
def test_bad_input_is_named(features: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        sources.arrays(features)
