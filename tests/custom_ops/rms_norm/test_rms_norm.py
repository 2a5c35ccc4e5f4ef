"""rms_norm against float64, in every mode, at no more than twice the error of the plain TensorFlow computation."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.rms_norm.cases import CASES, Case

EPSILON = 1e-5
assert custom_ops.rms_norm  # loads the library
FORWARD = ops.find("TfToolkit>RmsNorm")
MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
IDS = ["x".join(map(str, case.shape)) + "-" + case.dtype for case in CASES]


def tensors(case: Case, seed: int = 0) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """x, gamma and an output gradient for y."""
    rng = np.random.default_rng(seed)
    shapes = (case.shape, case.shape[-1:], case.shape)
    return tuple(tf.cast(rng.standard_normal(shape), case.dtype) for shape in shapes)


def reference(x, gamma):
    return FORWARD.run_reference(x, gamma, epsilon=EPSILON).y


def with_gradients(function):
    """(x, gamma, dy) → (y, dx, dgamma)"""

    def run(x, gamma, dy):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma])
            y = function(x, gamma)
        return [y, *tape.gradient(y, [x, gamma], output_gradients=dy)]

    return run


def float64(x, gamma, dy):
    """The formulas of the kernel's header comment, in NumPy and float64."""
    x, gamma, dy = (tf.cast(tensor, tf.float64).numpy() for tensor in (x, gamma, dy))
    d = x.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        inv = 1 / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) / d + EPSILON)
        dot = np.sum(dy * gamma * x, axis=-1, keepdims=True)
        dx = inv * dy * gamma - x * inv**3 / d * dot
    return [x * inv * gamma, dx, np.sum((dy * x * inv).reshape(-1, d), axis=0) if d else np.zeros(0)]


def assert_as_good_as(actual, naive, exact):
    """max|actual - exact| <= 2 max|naive - exact| + a few float32 roundings of the largest value."""
    for one, plain, right in zip(actual, naive, exact, strict=True):
        assert one.shape == plain.shape
        assert one.dtype == plain.dtype
        if 0 in right.shape:
            continue
        error = np.abs(tf.cast(one, tf.float64) - right).max()
        budget = 2 * np.abs(tf.cast(plain, tf.float64) - right).max() + 2.0**-22 * np.abs(right).max()
        assert error <= budget


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_values_and_gradients(case, mode):
    arguments = tensors(case)
    actual = MODES[mode](with_gradients(lambda x, gamma: custom_ops.rms_norm(x, gamma, EPSILON)))(*arguments)
    naive = with_gradients(reference)(*arguments)
    assert_as_good_as(actual, naive, float64(*arguments))


def second_order(function):
    def run(x, gamma, dy):
        with tf.GradientTape() as outer:
            outer.watch([x, gamma, dy])
            with tf.GradientTape() as inner:
                inner.watch([x, gamma])
                y = function(x, gamma)
            dx, dgamma = inner.gradient(y, [x, gamma], output_gradients=dy)
            penalty = tf.reduce_sum(dx**2) + tf.reduce_sum(tf.sin(dgamma))
        return outer.gradient(penalty, [x, gamma, dy])

    return run


@pytest.mark.parametrize("mode", MODES)
def test_second_order_gradient(mode):
    arguments = tensors(Case((6, 7), "float32"))
    actual = MODES[mode](second_order(lambda x, gamma: custom_ops.rms_norm(x, gamma, EPSILON)))(*arguments)
    naive = second_order(reference)(*arguments)
    wide = [tf.cast(tensor, tf.float64) for tensor in arguments]

    def exact_reference(x, gamma):
        return (
            x * tf.math.rsqrt(tf.reduce_mean(x**2, axis=-1, keepdims=True) + tf.constant(EPSILON, tf.float64)) * gamma
        )

    exact = [tensor.numpy() for tensor in second_order(exact_reference)(*wide)]
    # Two chains of roundings of different shape: a small multiple of float32's epsilon on top of the naive error.
    for one, plain, right in zip(actual, naive, exact, strict=True):
        budget = 2 * np.abs(plain - right).max() + 16 * np.finfo(np.float32).eps * np.abs(right).max()
        assert np.abs(one - right).max() <= budget


@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_the_second_output(mode):
    x, gamma, _ = tensors(Case((4, 9), "float32"))

    def run(function):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma])
            y, inv_rms = function(x, gamma, epsilon=EPSILON)
            loss = tf.reduce_sum(tf.sin(y)) + tf.reduce_sum(tf.exp(inv_rms))
        return tape.gradient(loss, [x, gamma])

    for actual, expected in zip(MODES[mode](lambda: run(FORWARD))(), run(FORWARD.run_reference), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_inside_vectorized_map():
    x, gamma, _ = tensors(Case((5, 3, 8), "float32"))
    gammas = tf.stack([gamma * i for i in range(5)])
    expected = custom_ops.rms_norm(x, gamma)
    shared = tf.vectorized_map(lambda row: custom_ops.rms_norm(row, gamma), x)
    np.testing.assert_array_equal(shared, expected)
    own = tf.vectorized_map(lambda pair: custom_ops.rms_norm(*pair), (x, gammas))
    np.testing.assert_array_equal(own, tf.stack([custom_ops.rms_norm(a, b) for a, b in zip(x, gammas, strict=True)]))


def test_per_example_gradients_inside_vectorized_map():
    x, gamma, dy = tensors(Case((5, 3, 8), "float32"))
    run = with_gradients(custom_ops.rms_norm)
    _, dx, dgamma = tf.vectorized_map(lambda pair: run(pair[0], gamma, pair[1]), (x, dy))
    for i in range(5):
        _, expected_dx, expected_dgamma = run(x[i], gamma, dy[i])
        np.testing.assert_array_equal(dx[i], expected_dx)
        np.testing.assert_array_equal(dgamma[i], expected_dgamma)


@pytest.mark.parametrize(
    ("x_shape", "gamma_shape", "expected"),
    [
        (None, [8], None),
        ([None, 8], [None], [None, 8]),
        ([None, None], [8], [None, 8]),
        ([2, 3, None], [None], [2, 3, None]),
        ([None, 8], None, [None, 8]),
    ],
)
def test_static_shapes(x_shape, gamma_shape, expected):
    specs = [tf.TensorSpec(shape, tf.float32) for shape in (x_shape, gamma_shape)]
    (output,) = tf.function(custom_ops.rms_norm).get_concrete_function(*specs).outputs
    assert (None if output.shape.rank is None else output.shape.as_list()) == expected


def test_not_a_number_stays_in_its_row():
    x = np.ones((3, 8), np.float32)
    x[1, 2] = np.nan
    y = custom_ops.rms_norm(x, np.ones(8, np.float32)).numpy()
    assert np.isnan(y).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("x", "gamma", "message"),
    [
        (
            np.ones((2, 8), np.float32),
            np.ones(7, np.float32),
            r"gamma has shape \[7\], but its dimension d must be 8 as in x",
        ),
        (np.ones((2, 8), np.float32), np.ones((1, 8), np.float32), "gamma has shape .* must have 1 dimension"),
        (np.float32(1), np.ones(8, np.float32), "x has shape .* must have at least 1 dimension"),
    ],
)
def test_wrong_shapes(x, gamma, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        custom_ops.rms_norm(x, gamma)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"gamma|x has shape"):
        tf.function(custom_ops.rms_norm)(x, gamma)
    unknown = [tf.TensorSpec(None, tf.float32)] * 2  # known only when it runs
    for jit in (False, True):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            tf.function(custom_ops.rms_norm, input_signature=unknown, jit_compile=jit)(x, gamma)


def test_wrong_dtypes_and_values():
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError), match=r"double|float64"):
        custom_ops.rms_norm(np.ones((2, 8)), np.ones(8))
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError)):
        custom_ops.rms_norm(tf.ones((2, 8), tf.float32), tf.ones(8, tf.float16))
    with pytest.raises(ValueError, match="epsilon must not be negative"):
        custom_ops.rms_norm(np.ones((2, 8), np.float32), np.ones(8, np.float32), epsilon=-1.0)
    with pytest.raises(TypeError, match="the signature is rms_norm"):
        FORWARD(np.ones((2, 8), np.float32))
    with pytest.raises(TypeError, match="epsilon must be f32, got 'big'"):
        FORWARD(np.ones((2, 8), np.float32), np.ones(8, np.float32), epsilon="big")


LOADER = """
import sys, numpy as np, tensorflow as tf
if sys.argv[1] == "late":  # TensorFlow's context and XLA are alive before the op host is loaded
    tf.function(lambda x: x * 2, jit_compile=True)(tf.ones(3))
from tftoolkit import custom_ops
custom_ops.rms_norm
if sys.argv[1] == "early":
    assert tf.executing_eagerly()
model = tf.saved_model.load(sys.argv[2])
data = np.load(sys.argv[3])
y = model.signatures["serving_default"](tf.constant(data["x"]))["y"]
np.testing.assert_array_equal(y, data["y"])
dx = model.gradient(tf.constant(data["x"]))
np.testing.assert_array_equal(dx, data["dx"])
np.testing.assert_array_equal(tf.function(model.gradient, jit_compile=True)(tf.constant(data["x"])), data["jit"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["early", "late"])
def test_through_a_saved_model_in_a_new_process(tmp_path, order):
    class Model(tf.Module):
        def __init__(self):
            self.gamma = tf.Variable(tf.linspace(0.5, 2.0, 8))

        @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32)])
        def __call__(self, x):
            return {"y": custom_ops.rms_norm(x, self.gamma)}

        @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32)])
        def gradient(self, x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.sin(custom_ops.rms_norm(x, self.gamma))
            return tape.gradient(y, x)

    model = Model()
    x, _, _ = tensors(Case((5, 8), "float32"))
    options = tf.saved_model.SaveOptions(namespace_whitelist=["TfToolkit"])
    tf.saved_model.save(model, tmp_path / "model", signatures=model.__call__, options=options)
    jit = tf.function(model.gradient, jit_compile=True)(x)
    np.savez(tmp_path / "data.npz", x=x, y=model(x)["y"], dx=model.gradient(x), jit=jit)
    subprocess.run([sys.executable, "-c", LOADER, order, tmp_path / "model", tmp_path / "data.npz"], check=True)
