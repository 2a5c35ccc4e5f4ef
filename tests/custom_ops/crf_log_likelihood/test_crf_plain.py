"""CRFs where no kernel runs, on a GPU, say: what cannot be refused there is NaN."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.crf_log_likelihood.cases import ARGUMENTS
from tftoolkit.custom_ops.engine import ops

assert custom_ops.crf_log_likelihood  # gives the ops their references


@pytest.mark.parametrize("wrong", ["length -1", "length 6", "length 2^32 + 1", "tag -1", "tag 3"])
def test_where_no_kernel_runs_wrong_sequences_are_nan(wrong):
    """As on a GPU, where nothing waits to refuse them. Tags behind a sequence's end are not looked at there, either."""
    rng = np.random.default_rng(0)
    x, transitions, start, end = (rng.standard_normal(size).astype("f") for size in ((6, 5, 3), (3, 3), 3, 3))
    tags, lengths, scores = rng.integers(0, 3, (6, 5)), np.zeros(6, np.int64), [transitions, start, end]
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
