"""A running mean counts each value with its weight, and long past what float32 can count."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers


def test_t9_it_is_the_weighted_mean_since_the_last_reset():
    mean = trainers.RunningMean()
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=[5, 4, 3]), rng.random([5, 4, 3])
    for i in range(5):
        found = mean.update(values[i], weights[i])
        expected = np.average(values[: i + 1], weights=weights[: i + 1])
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    mean.reset()
    assert float(mean.update(tf.constant([True, False]))) == 0.5


def test_t9_it_counts_beyond_what_float32_can():
    mean = trainers.RunningMean()
    mean.weight.assign(2.0**24)
    mean.update(tf.ones([1]))
    assert mean.weight.numpy() == 2**24 + 1


def test_t9_without_any_weight_there_is_no_mean():
    assert np.isnan(trainers.RunningMean().update([1.0], [0.0]))


def test_t9_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"weights must have the values' shape \(2,\), but have \(2, 1\)"):
        trainers.RunningMean().update([1.0, 2.0], [[1.0], [1.0]])
