"""The CUDA kernels of adamw, run in emulation: they give what the CPU's give."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.adamw.cases import arguments, arguments_with_master, lists, options, rounded
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import pytest_checks

pytestmark = pytest.mark.slow
assert custom_ops.adamw  # loads the library
PLAIN, WITH_MASTER = ops.find("TfToolkit>AdamW"), ops.find("TfToolkit>AdamWMaster")
# Parameters hold 56 weights (where CUDA is too old for more, as in emulation), a chunk 8192 elements, a thread takes 4.
SHAPES = ((8195,), (), (0,), (2, 3), *((1,),) * 60, (1027,))
EPSILON = {"float32": 2.0**-22, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def close(found, expected):
    """Up to the rounding of fused multiply-add and of the corrections: a step of the type at most."""
    for ours, others in zip(found, expected, strict=True):
        for one, other in zip(ours, others, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            right = tf.cast(other, tf.float64).numpy()
            np.testing.assert_allclose(tf.cast(one, tf.float64), right, rtol=2 * EPSILON[one.dtype.name], atol=1e-6)


@pytest.mark.parametrize("seed", [0, "random"])
@pytest.mark.parametrize(
    ("dtype", "gradients", "has_master"),
    [
        ("float32", "float32", False),
        ("bfloat16", "bfloat16", True),
        ("float16", "float32", False),
        *(
            pytest.param(dtype, gradients, has_master, marks=pytest.mark.exhaustive)
            for dtype in EPSILON
            for gradients in EPSILON
            for has_master in (False, True)
            if not (has_master and dtype == "float32")
        ),
    ],
)
def test_what_the_cpu_gives(dtype, gradients, has_master, seed, random_seed):
    w, m, v, g = lists(SHAPES, "float32", gradients)
    masters = {"master": w} if has_master else {}
    run = lambda: custom_ops.adamw(True, 0.1, 3.0, rounded(w, dtype), m, v, g, **masters, **options(len(w)))  # noqa: E731
    expected = run()
    with emulation.settings(seed=random_seed if seed else 0, max_blocks=2 if seed else 0), emulation.emulated(PLAIN):
        found = run()
    close(found, expected)
    if has_master:
        for weight, master in zip(found.new_w, found.new_master, strict=True):
            assert np.all(weight == tf.cast(master, weight.dtype))


def test_what_is_not_applied_keeps_every_bit():
    w, m, v, g = lists(((5,), (2, 3)), "bfloat16")
    with emulation.emulated(PLAIN):
        found = custom_ops.adamw(False, np.nan, 1.0, w, m, v, g, master=[np.float32(x) for x in w])
    for ours, others in zip(found[:3], (w, m, v), strict=True):
        assert [x.numpy().tobytes() for x in ours] == [x.tobytes() for x in others]


def test_a_weight_that_was_assigned_since_counts_and_not_its_master():
    w, master = [tf.constant([1.0, 5.0, np.inf], tf.float16)], [tf.constant([1.0002, 2.0, 1e6])]
    zero = [tf.zeros(3)]
    with emulation.emulated(PLAIN):
        found = custom_ops.adamw(True, 1.0, 1e30, w, zero, zero, zero, master=master)  # corrections of 1
    np.testing.assert_array_equal(found.new_master[0], np.float32([1.0002, 5, 1e6]))


KERNEL = ["runs", "empty", "modes"]
_INPUTS, _OPTIONS = arguments()
_INPUTS_WITH_MASTER, _OPTIONS_WITH_MASTER = arguments_with_master()
test_opcheck = pytest_checks(PLAIN, *_INPUTS, **_OPTIONS, checks=KERNEL, device="emulated")
test_opcheck_with_master = pytest.mark.exhaustive(
    pytest_checks(WITH_MASTER, *_INPUTS_WITH_MASTER, **_OPTIONS_WITH_MASTER, checks=KERNEL, device="emulated")
)
