"""Sequences that cannot be: refused by CRFs' kernels, NaN where plain TensorFlow runs in their place."""

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.crf_log_likelihood.cases import ARGUMENTS
from tftoolkit.custom_ops.engine import ops


def problem(scale=1.0, seed=0, batch=6, time=5, states=3):
    rng = np.random.default_rng(seed)
    shapes = [(batch, time, states), (states, states), (states,), (states,)]
    x, transitions, start, end = (scale * rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, rng.integers(0, states, (batch, time)), np.arange(batch) % (time + 1), transitions, start, end


@pytest.mark.parametrize("mode", op_values.MODES)
def test_bad_tags_and_lengths(mode):
    def run(tags, lengths):
        call = op_values.MODES[mode](
            lambda tags, lengths: custom_ops.crf_log_likelihood(tf.zeros([2, 3, 4]), tags, lengths, tf.zeros([4, 4]))
        )
        return call(tf.constant(tags), tf.constant(lengths))

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"tags holds 4 \(sequence 1, place 2\), but must hold"):
        run([[0, 1, 9], [0, 3, 4]], [2, 3])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"lengths holds 4 \(element 1\), but must be from 0 to 3"):
        run([[0, 1, 2], [0, 1, 2]], [0, 4])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"lengths holds -1 \(element 0\)"):
        run([[0, 1, 2], [0, 1, 2]], [-1, 9])


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("bad", [-1, 6])
def test_bad_lengths_of_decode_and_marginals(mode, bad):
    x, _, lengths, *scores = problem()
    lengths[[2, 4]] = bad
    for call in (custom_ops.crf_decode, custom_ops.crf_marginals):
        run = op_values.MODES[mode](lambda lengths, call=call: call(x, lengths, *scores))
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=rf"holds {bad} \(element 2\), but must be from 0 to 5"
        ):
            run(tf.constant(lengths))


@pytest.mark.parametrize("wrong", ["length -1", "length 6", "length 2^32 + 1", "tag -1", "tag 3"])
def test_where_no_kernel_runs_wrong_sequences_are_nan(wrong):
    """As on a GPU, where nothing waits to refuse them. Tags behind a sequence's end are not looked at there, either."""
    x, tags, lengths, *scores = (tf.constant(one).numpy() for one in problem())
    lengths[:], name = [5, 3, 0, 1, 2, 3], {"length": "lengths", "tag": "tags"}[wrong.split()[0]]
    tags[1, 3:] = 77
    right = plainly(x, tags, lengths, scores)
    changed = {"tags": tags, "lengths": lengths}
    changed[name][4] = {"-1": -1, "6": 6, "2^32 + 1": 2**32 + 1, "3": 3}[wrong.split(" ", 1)[1]]
    found = plainly(x, tags, lengths, scores)
    of_sequences = [0, 1] if name == "tags" else [0, 1, 5, 6, 7]
    for place in of_sequences:
        assert (np.isnan(found[place][4]) | (found[place][4] == -1)).all()
        kept = np.arange(6) != 4
        np.testing.assert_array_equal(found[place][kept], right[place][kept])
    for shared in found[2:5]:
        assert np.isnan(shared).all()
    assert not any(np.isnan(one).any() for one in right)


def plainly(x, tags, lengths, scores):
    """Likelihoods; gradients by logits, transitions, start and end; best paths, their scores and marginals."""
    references = {name: ops.find(f"TfToolkit>{name}").run_reference for name in ARGUMENTS}
    given = [tf.constant(one) for one in (x, tags, lengths, *scores)]
    found = [references["CrfLogLikelihood"](*given), *references["CrfLogLikelihoodGrad"](*given, tf.ones(6))]
    del given[1]
    return [one.numpy() for one in (*found, *references["CrfDecode"](*given), references["CrfMarginals"](*given))]
