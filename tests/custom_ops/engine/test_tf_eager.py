"""Eager calls that find their attributes from before give what the first call would give."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import tf_host

pytestmark = pytest.mark.slow  # compiles a library
X, Y = tf.zeros([3]), tf.constant([1.0, 2.0, math.inf])


@pytest.fixture(scope="module")
def library():
    return custom_ops.load("Grammar", [Path(__file__).parent / "grammar.cc"])


def test_attributes_are_told_apart(library):
    def blend(*t):
        return library.blend(X, tf.ones([3]), **({"t": t[0]} if t else {})).numpy()[0]

    for _ in range(3):
        for t in (0.25, 0.75, 1.0, math.inf, 1):
            assert blend(t) == t
        assert blend() == 0.5
        assert math.isnan(blend(math.nan))
        with pytest.raises(TypeError, match="t must be"):
            blend(True)  # is equal to 1.0
        with pytest.raises(TypeError, match="unexpected keyword argument 'u'"):
            library.blend(X, Y, u=1.0)


def test_a_zero_keeps_its_sign(library):
    for t in (0.0, -0.0, 0.0, -0.0):
        assert np.signbit(library.blend(-X, tf.ones([3]), t=t)[0]) == np.signbit(t)
    for left in (0, 2, 0, 2):
        assert library.pad(X, left=left).shape == [3 + left]


def test_the_very_objects_of_the_call_before(library):
    ones, negative, half = tf.ones([3]), -0.0, 0.5
    for t in (half, half, negative, negative, half):
        found = library.blend(-X, ones, t=t).numpy()
        np.testing.assert_array_equal(found, [t] * 3)
        assert np.signbit(found[0]) == np.signbit(t)
    assert library.blend(X, ones, t=half)[0] == library.blend(X, ones)[0] == half
    with pytest.raises(TypeError, match="unexpected keyword argument 'u'"):
        library.blend(X, ones, u=half)
    with pytest.raises(TypeError, match="unexpected keyword argument 'u'"):
        library.blend(X, ones, u=None)


def test_more_values_than_are_kept(library):
    for _ in range(2):
        for i in range(150):
            assert library.blend(X, tf.ones([3]), t=float(i))[0] == i


def test_lists_and_tuples_of_attributes(library):
    for ints in ([1, 2], (1, 2), (1, 2, 3), [1, 2]):
        assert library.lists(tf.constant(0.0), ints=ints)[2] == sum(ints)


def test_absent_inputs(library):
    x, vector = tf.ones([2, 3]), tf.constant([1.0, 2.0, 3.0])
    for _ in range(2):
        np.testing.assert_array_equal(library.affine(x, None, None), x)
        np.testing.assert_array_equal(library.affine(x, vector, None), [[1, 2, 3]] * 2)
        np.testing.assert_array_equal(library.affine(x, None, vector), [[2, 3, 4]] * 2)
        np.testing.assert_array_equal(library.affine(x, vector, vector), [[2, 4, 6]] * 2)
        with pytest.raises(TypeError, match="x must be given"):
            library.affine(None, vector, vector)


def test_optional_outputs_dtypes_and_what_is_no_tensor(library):
    offsets = tf.constant([0, 1, 2])
    for _ in range(2):
        assert library.segments(tf.ones([2, 1]), offsets).counts is None
        np.testing.assert_array_equal(library.segments(tf.ones([2, 1]), offsets, has_counts=True).counts, [1, 1])
        assert library.cast(X, dtype=tf.float64).dtype == tf.float64
        assert library.cast(X).dtype == tf.float32
        np.testing.assert_array_equal(library.blend([0.0], np.ones(1, np.float32), t=0.25), [0.25])
        np.testing.assert_array_equal(library.blend(tf.Variable([0.0]), tf.ones([1]), t=0.25), [0.25])
        with pytest.raises(tf.errors.InvalidArgumentError, match="y has shape"):
            library.blend(X, tf.ones([2]), t=0.25)


def test_tapes_and_graphs_see_the_call(library):
    @library.blend.gradient
    def _(op, dz):
        t = op.get_attr("t")
        return dz * (1 - t), dz * t

    x = tf.ones([3])
    for t in (0.25, 0.5, 0.25):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = library.blend(x, Y, t=t)
        np.testing.assert_array_equal(tape.gradient(z, x), [1 - t] * 3)
        np.testing.assert_array_equal(tf.function(lambda x, t=t: library.blend(x, X, t=t))(x), [1 - t] * 3)


def test_autograph_leaves_the_engine_alone(library, monkeypatch):
    """It took seconds to convert all of it, in the first function that calls an op."""
    callers = []

    def call(*arguments):
        callers.append(sys._getframe(1).f_code.co_filename)
        return X

    monkeypatch.setattr(tf_host, "call", call)
    tf.function(lambda x: library.blend(x, x))(X)
    assert [Path(name).name for name in callers] == ["ops.py"]
