"""More than 2^31 elements: what lies behind them is computed as it is alone. Needs 15 GB of memory."""

import gc
import os

import pytest
import tensorflow as tf

from tftoolkit import custom_ops

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 16e9, reason="too little memory"),
]
WIDTH = 1024
ROWS = 2**31 // WIDTH + 3
LAST = 2  # rows that are compared


@pytest.fixture(scope="module")
def x() -> tf.Tensor:
    """bfloat16 [ROWS, WIDTH]: zeros, and numbers in the last rows."""
    rows = tf.cast(tf.random.stateless_normal([LAST, WIDTH], seed=[1, 2]), tf.bfloat16)
    return tf.concat([tf.zeros([ROWS - LAST, WIDTH], tf.bfloat16), rows], axis=0)


VECTOR = tf.cast(tf.random.stateless_normal([WIDTH], seed=[3, 4]), tf.bfloat16)
OPS = {
    "rms_norm": lambda x: custom_ops.rms_norm(x, VECTOR),
    "layer_norm": lambda x: custom_ops.layer_norm(x, VECTOR, VECTOR),
    "swiglu": lambda x: custom_ops.swiglu(x, x),
    "geglu": lambda x: custom_ops.geglu(x, x),
    "softmax_cross_entropy": lambda x: custom_ops.softmax_cross_entropy(tf.fill([x.shape[0]], 5), x),
    "rotary_embedding": lambda x: tf.reshape(
        custom_ops.rotary_embedding(tf.reshape(x, [-1, 1, 2, WIDTH // 2]), start=7), [-1, WIDTH]
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_elements_behind_2_to_31(x, name):
    gc.collect()
    found = OPS[name](x)[-LAST:]
    expected = OPS[name](x[-LAST:])
    tf.debugging.assert_equal(found, expected)


def test_dropout_add(x):
    """The mask depends on the element's number, which has 64 bits: it is another one in each half."""
    found = custom_ops.dropout_add(x, tf.zeros_like(x), [1, 2], rate=0.5)[-LAST:]
    kept = found != 0
    tf.debugging.assert_equal(tf.where(kept, x[-LAST:] * 2, 0), found)
    assert 0.4 < tf.reduce_mean(tf.cast(kept, tf.float32)) < 0.6


def test_one_query_over_many_keys():
    keys, depth = 2**31 // 256 + 5, 256
    k = tf.concat([tf.zeros([1, keys - 1, 1, depth], tf.bfloat16), tf.ones([1, 1, 1, depth], tf.bfloat16)], axis=1)
    q = tf.ones([1, 1, 1, depth], tf.bfloat16)
    o = custom_ops.flash_attention(q, k, k, scale=1.0)  # the last key's score is 256, all others are 0
    tf.debugging.assert_equal(o, q)


def test_fused_linear_cross_entropy():
    depth, classes = 256, 2**31 // 256 + 5
    weight = tf.concat([tf.zeros([classes - 1, depth], tf.bfloat16), tf.ones([1, depth], tf.bfloat16)], axis=0)
    inputs = tf.ones([2, depth], tf.bfloat16)
    loss = custom_ops.fused_linear_cross_entropy([classes - 1, 0], inputs, weight, reduction="none")
    tf.debugging.assert_near(loss, [0.0, 256.0], atol=1e-4)
