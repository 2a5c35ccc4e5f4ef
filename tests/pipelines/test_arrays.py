"""The arrays source."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import sources


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
