"""The same libraries under JAX, in processes of their own: TensorFlow must not be needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tftoolkit.custom_ops.engine import jax_host, schema_parser

pytest.importorskip("jax")
HEADER = """
import sys
import jax, jax.numpy as jnp, numpy as np
from tftoolkit import custom_ops
rng = np.random.default_rng(0)
"""
FOOTER = "assert 'tensorflow' not in sys.modules, 'tensorflow was imported'\n"


def run(code: str) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", HEADER + code + FOOTER], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_rms_norm():
    run("""
rms_norm = custom_ops.as_jax(custom_ops.rms_norm)
def plain(x, gamma, epsilon=1e-6):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * gamma
def gradients(function):
    return jax.grad(lambda x, gamma: jnp.sum(jnp.sin(function(x, gamma))), (0, 1))
x, gamma = jnp.float32(rng.standard_normal((3, 5, 8))), jnp.float32(rng.standard_normal(8))
for wrap in (lambda f: f, jax.jit):
    np.testing.assert_allclose(wrap(rms_norm)(x, gamma), plain(x, gamma), rtol=1e-5, atol=1e-6)
    for actual, expected in zip(wrap(gradients(rms_norm))(x, gamma), gradients(plain)(x, gamma)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
np.testing.assert_array_equal(jax.vmap(lambda row: rms_norm(row, gamma))(x), rms_norm(x, gamma))
for dtype in (jnp.bfloat16, jnp.float16):
    y = rms_norm(x.astype(dtype), gamma.astype(dtype), epsilon=1e-3)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.float32(y), plain(x, gamma, 1e-3), rtol=2e-2, atol=2e-2)
for wrong, message in [
    (lambda: rms_norm(x, jnp.ones(7)), "gamma has shape [7], but its dimension d must be 8 as in x"),
    (lambda: rms_norm(x, gamma.astype(jnp.bfloat16)), "gamma is bfloat16, but T is float32"),
    (lambda: rms_norm(jnp.int32(x), gamma), "x must be f32 or bf16 or f16, got int32"),
]:
    try:
        wrong()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
try:  # the second derivative is defined by a TensorFlow reference
    jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(rms_norm(x, gamma))))(x) ** 2))(x)
except NotImplementedError as error:
    assert "RmsNormGrad takes its gradient from a TensorFlow function" in str(error)
else:
    raise AssertionError("no error")
""")


def test_everything_a_schema_can_say():
    source = str(Path(__file__).parent / "grammar.cc")
    run(f"""
library = custom_ops.load("Grammar", [{source!r}])
for wrap in (lambda f: f, jax.jit):
    xs = [jnp.ones((2, 3)), jnp.full(4, 2.0)]
    weights = [jnp.float32([1, 2, 3]), jnp.float32([1, 0, 1, 0])]
    ys = wrap(lambda scale, xs, weights: library.scaled(scale, xs, weights))(jnp.float32(10), xs, weights)
    for y, x, weight in zip(ys, xs, weights):
        np.testing.assert_array_equal(y, 10 * x * weight)
    x = jnp.float32(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(wrap(lambda x: library.pad(x, left=1, right=2))(x), np.pad(x, [(0, 0), (1, 2)]))
    bias = jnp.float32([10, 20, 30])
    np.testing.assert_array_equal(wrap(lambda x, b: library.affine(x, None, b))(x, bias), x + bias)
    np.testing.assert_array_equal(wrap(lambda x: library.affine(x))(x), x)
    start = jnp.float32([1, 2])
    total = wrap(lambda s, x: library.accumulate(s, x))(start, jnp.float32([10, 20]))
    np.testing.assert_array_equal(total, [11, 22])
    np.testing.assert_array_equal(start, [1, 2])
    y = wrap(lambda x: library.lists(x))(jnp.float32(0))
    np.testing.assert_allclose(y, [-np.inf, 7, 1, 5, 2, 2, 3], rtol=0.02)
    found = wrap(lambda x: library.segments(x, jnp.int32([0, 1, 3]), has_counts=True))(x.T)
    np.testing.assert_array_equal(found.sums, [x.T[0], x.T[1:].sum(0)])
    np.testing.assert_array_equal(found.counts, [1, 2])
    assert wrap(lambda x: library.segments(x, jnp.int32([0, 1, 3])))(x.T).counts is None
    assert wrap(lambda x: library.cast(x, dtype=jnp.int32))(x).dtype == jnp.int32
    assert wrap(lambda x: library.cast(x))(x).dtype == jnp.float32
    first, second = (float(wrap(lambda x: library.tick(x))(jnp.float32(0))) for _ in range(2))
    assert second == first + 1, "stateful: not folded"
    ids = jnp.int32([[2], [0]])
    np.testing.assert_array_equal(wrap(lambda t, i: library.lookup(t, i))(x.T, ids), np.asarray(x.T)[ids])
try:
    jax.grad(lambda x: jnp.sum(library.affine(x)))(x)
except NotImplementedError as error:
    assert "Affine has no gradient" in str(error)
else:
    raise AssertionError("no error")
try:
    jax.block_until_ready(library.lookup(x.T, jnp.int32([7])))
except Exception as error:
    assert "id 7 is not in the table" in str(error), error
else:
    raise AssertionError("no error")
""")


@pytest.mark.slow
def test_messages_end_with_their_code():
    source = str(Path(__file__).parent / "faulty.cc")
    run(f"""
library = custom_ops.load("Faulty", [{source!r}])
x = jnp.ones(3)
for wrap in (lambda f: f, jax.jit):
    for wrong, message, code in [
        (lambda: wrap(library.refuse)(x), "there are 3 elements", "op-input"),
        (lambda: wrap(library.throw)(x), "thrown on purpose", "op-failed"),
        (lambda: wrap(lambda x: library.attributes(x, single=1.0))(x), "must have 2 dimensions", "op-input"),
        (lambda: wrap(library.refuse)(jnp.int32(x)), "x must be f32, got int32", "op-input"),
        (lambda: wrap(library.mismatch)(x), "Bind() and the op's schema disagree", "op-declaration"),
    ]:
        try:
            jax.block_until_ready(wrong())
        except Exception as error:
            text = str(error)
            assert f"[tftoolkit: docs/errors.md#{{code}}]" in text[text.index(message) :], text
            assert text.count("docs/errors.md") == 1, text
        else:
            raise AssertionError("no error")
""")


@pytest.mark.slow
def test_o1_an_exception_from_a_task_of_a_parallel_loop():
    source = str(Path(__file__).parent / "faulty.cc")
    run(f"""
library = custom_ops.load("Faulty", [{source!r}])
for wrap in (lambda f: f, jax.jit):
    for where in ("first", "last", "all", "nested"):
        for _ in range(10):
            try:
                jax.block_until_ready(wrap(lambda x: library.throw_in_task(x, where=where))(jnp.float32(1)))
            except Exception as error:
                assert "thrown in a task" in str(error), error
            else:
                raise AssertionError("no error")
    assert wrap(lambda x: library.throw_in_task(x, where="nowhere"))(jnp.float32(1)) == 64
""")


def test_outputs_take_the_places_of_their_inputs_however_long_the_lists_are():
    class Op:
        schema = schema_parser.parse(
            "(x: f32[], a: f32[], *u: f32[...], *v: f32[...]) -> (b: f32[] = a, *w: f32[...] = v, *z: f32[...] = u)"
        )

    assert jax_host._aliases(Op(), 3) == {1: 0, 2: 4, 3: 5, 4: 6, 5: 1, 6: 2, 7: 3}
