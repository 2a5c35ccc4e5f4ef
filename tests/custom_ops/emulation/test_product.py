"""The functions of tftoolkit/tensor_core.h give the right product in emulation, and mistakes around them are found."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation

pytestmark = pytest.mark.slow  # to compile
HERE = Path(__file__).parent
FINDINGS = {
    "no wait for copies": (1, r"which a copy that was not waited for writes, .*; it was started by thread .* @copy"),
    "waits for too few": (2, r"which a copy that was not waited for writes, .*; it was started by thread .* @copy"),
    "no barrier before a refill": (3, r"race: store to shared array stages .*; no barrier orders it after .* @left"),
    "a lane leaves out the product": (4, r"Mma, @multiply, waits for ever: thread \(31, 0, 0\) waits at "),
    "rows that are not aligned": (5, r"misaligned access: stages \+ \d+ bytes is no multiple of 16, @copy"),
}


@pytest.fixture(scope="module")
def multiply():
    return custom_ops.load("Product", [HERE / "product.cu"], cuda="emulated").multiply


def matrices(m: int, k: int, n: int, dtype: str) -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    return tf.cast(rng.standard_normal((m, k)), dtype), tf.cast(rng.standard_normal((k, n)), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(64, 32, 64), (128, 96, 64), (256, 256, 256)], ids=str)
def test_product(multiply, dtype, shape):
    a, b = matrices(*shape, dtype)
    exact = tf.matmul(tf.cast(a, tf.float64), tf.cast(b, tf.float64))
    with emulation.settings(seed=1):
        np.testing.assert_allclose(multiply(a, b), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bug", FINDINGS)
def test_a_planted_mistake_is_found(multiply, bug, place_of):
    number, text = FINDINGS[bug]
    text = re.sub(r"@(\w+)", lambda mark: re.escape(place_of("product.cu", mark[1])), text)
    with pytest.raises(tf.errors.InternalError, match=text):
        multiply(*matrices(64, 96, 64, "bfloat16"), bug=number)
