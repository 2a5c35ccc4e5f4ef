"""Runs ops in one environment and prints, as JSON, which ways of calling them gave the right results there.

    check.py tensorflow|jax LIBRARIES

LIBRARIES is JSON: {"Grammar": [path, SHA-256], "TfToolkit": …}, the files that must be used. Needs no more than the
package itself and the host that is tried: no pytest, no test data.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import library as libraries
from tftoolkit.custom_ops.engine import toolchain

EPSILON = 1e-5
X = np.random.default_rng(0).standard_normal((3, 5, 17))
GAMMA, DY = np.linspace(0.5, 2, 17), np.cos(X)
# Half an ulp of the largest value for storing it, and as much again for what was lost before.
TOLERANCE = {"float32": 4e-6, "float16": 4e-3, "bfloat16": 4e-2}


def expected() -> list[np.ndarray]:
    """y, dx and dgamma of rms_norm in float64."""
    inverse = 1 / np.sqrt(np.mean(X**2, -1, keepdims=True) + EPSILON)
    dot = np.sum(DY * GAMMA * X, -1, keepdims=True)
    dx = inverse * DY * GAMMA - X * inverse**3 / X.shape[-1] * dot
    return [X * inverse * GAMMA, dx, np.sum(DY * X * inverse, (0, 1))]


def assert_close(actual: Any, right: np.ndarray, dtype: str) -> None:
    """Relative to the largest value."""
    error = np.abs(np.asarray(actual).astype(np.float64) - right).max() / np.abs(right).max()
    assert error <= TOLERANCE[dtype], f"{dtype}: relative error {error:.2g}, allowed {TOLERANCE[dtype]:.2g}"


def check_grammar(grammar: Any, wrap: Callable[..., Any], array: Callable[..., Any]) -> None:
    """One op for each thing that a schema can say; ``array`` makes the host's arrays."""
    xs = [array(np.ones((2, 3), np.float32)), array(np.full(4, 2, np.float32))]
    weights = [array(np.float32([1, 2, 3])), array(np.float32([1, 0, 1, 0]))]
    ys = wrap(lambda scale: grammar.scaled(scale, xs, weights))(array(np.float32(10)))
    for y, x, weight in zip(ys, xs, weights, strict=True):
        np.testing.assert_array_equal(y, 10 * np.asarray(x) * np.asarray(weight))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(
        wrap(lambda x: grammar.pad(x, left=1, right=2))(array(x)), np.pad(x, [(0, 0), (1, 2)])
    )
    assert wrap(lambda x: grammar.windows(x, size=3, stride=2))(array(np.ones(8, np.float32))).shape == (3, 3)
    bias = array(np.float32([10, 20, 30]))
    np.testing.assert_array_equal(wrap(lambda x: grammar.affine(x, None, bias))(array(x)), x + np.asarray(bias))
    start = array(np.float32([1, 2]))
    np.testing.assert_array_equal(
        wrap(lambda s, x: grammar.accumulate(s, x))(start, array(np.float32([10, 20]))), [11, 22]
    )
    np.testing.assert_array_equal(start, [1, 2])
    lists = wrap(lambda x: grammar.lists(x))(array(np.float32(0)))
    np.testing.assert_allclose(lists, [-math.inf, (1.000000000000007 - 1) * 1e15, 1, 5, 2, 2, 3], rtol=1e-6)
    ids = np.int32([[2], [0]])
    np.testing.assert_array_equal(wrap(lambda t, i: grammar.lookup(t, i))(array(x.T), array(ids)), x.T[ids])


def must_raise(kinds: type | tuple[type, ...], text: str, function: Callable[[], Any]) -> None:
    """Fails unless the call raises one of these kinds of error with this text."""
    message = None
    try:
        np.asarray(function())
    except kinds as error:
        message = str(error)
    assert text in (message or ""), f"there should be an error that says {text!r}, got {message}"


# TensorFlow


def tensorflow_checks(grammar: Any) -> dict[str, Callable[[], None]]:
    import tensorflow as tf

    rms_norm = custom_ops.rms_norm

    def run(x: Any, gamma: Any, dy: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch([x, gamma])
            y = rms_norm(x, gamma, EPSILON)
        return [y, *tape.gradient(y, [x, gamma], output_gradients=dy)]

    def check(wrap: Callable[..., Any]) -> None:
        for dtype in TOLERANCE:
            results = wrap(run)(*(tf.cast(value, dtype) for value in (X, GAMMA, DY)))
            for result, right in zip(results, expected(), strict=True):
                assert result.dtype == dtype
                assert_close(tf.cast(result, tf.float64), right, dtype)
        check_grammar(grammar, wrap, tf.constant)
        x = tf.ones([2, 8])
        must_raise((tf.errors.InvalidArgumentError, ValueError), "gamma", lambda: wrap(rms_norm)(x, tf.ones(7)))
        look_up = wrap(lambda table, ids: grammar.lookup(table, ids))
        must_raise(tf.errors.InvalidArgumentError, "id 7 is not in the table", lambda: look_up(x, tf.constant([7])))

    def jit() -> None:
        obstacle = toolchain.xla_obstacle()
        if obstacle is None:
            return check(lambda f: tf.function(f, jit_compile=True))
        jitted = tf.function(rms_norm, jit_compile=True)
        must_raise(tf.errors.OpError, obstacle, lambda: jitted(tf.ones([2, 8]), tf.ones(8)))
        raise UnavailableError(obstacle)

    def second_order() -> None:
        def penalty(function: Callable[..., Any], dtype: str) -> Any:
            x, gamma, dy = (tf.cast(value, dtype) for value in (X, GAMMA, DY))
            with tf.GradientTape() as outer:
                outer.watch([x, gamma, dy])
                with tf.GradientTape() as inner:
                    inner.watch([x, gamma])
                    y = function(x, gamma)
                dx, dgamma = inner.gradient(y, [x, gamma], output_gradients=dy)
                loss = tf.reduce_sum(dx**2) + tf.reduce_sum(tf.sin(dgamma))
            return outer.gradient(loss, [x, gamma, dy])

        def plain(x: Any, gamma: Any) -> Any:
            return x * tf.math.rsqrt(tf.reduce_mean(x**2, -1, keepdims=True) + tf.cast(EPSILON, x.dtype)) * gamma

        right = penalty(plain, "float64")
        for wrap in (lambda f: f, tf.function):
            found = wrap(lambda: penalty(lambda x, gamma: rms_norm(x, gamma, EPSILON), "float32"))()
            for one, other in zip(found, right, strict=True):
                assert_close(one, other.numpy(), "float32")

    def vectorized() -> None:
        x, gamma = tf.constant(X, tf.float32), tf.constant(GAMMA, tf.float32)
        mapped = tf.vectorized_map(lambda row: rms_norm(row, gamma), x)
        np.testing.assert_array_equal(mapped, rms_norm(x, gamma))

    def saved_model() -> None:
        module = tf.Module()
        x, gamma = tf.constant(X, tf.float32), tf.constant(GAMMA, tf.float32)
        module.f = tf.function(lambda x: rms_norm(x, gamma), input_signature=[tf.TensorSpec([None, 5, 17])])
        with tempfile.TemporaryDirectory() as folder:
            options = tf.saved_model.SaveOptions(namespace_whitelist=["TfToolkit"])
            tf.saved_model.save(module, folder, options=options)
            np.testing.assert_array_equal(tf.saved_model.load(folder).f(x), rms_norm(x, gamma))

    return {
        "eager": lambda: check(lambda f: f),
        "tf.function": lambda: check(tf.function),
        "jit_compile": jit,
        "second order": second_order,
        "vectorized_map": vectorized,
        "SavedModel": saved_model,
    }


# JAX


def jax_checks(grammar: Any) -> dict[str, Callable[[], None]]:
    import jax
    import jax.numpy as jnp

    rms_norm = custom_ops.as_jax(custom_ops.rms_norm)

    def run(x: Any, gamma: Any, dy: Any) -> list[Any]:
        y, pull_back = jax.vjp(lambda x, gamma: rms_norm(x, gamma, epsilon=EPSILON), x, gamma)
        return [y, *pull_back(dy)]

    def check(wrap: Callable[..., Any]) -> None:
        for dtype in TOLERANCE:
            results = wrap(run)(*(jnp.asarray(value, dtype) for value in (X, GAMMA, DY)))
            for result, right in zip(results, expected(), strict=True):
                assert result.dtype == dtype
                assert_close(result, right, dtype)
        check_grammar(grammar, wrap, jnp.asarray)
        x = jnp.ones((2, 8))
        must_raise(ValueError, "gamma has shape", lambda: wrap(rms_norm)(x, jnp.ones(7)))
        look_up = wrap(lambda table, ids: grammar.lookup(table, ids))
        must_raise(Exception, "id 7 is not in the table", lambda: look_up(x, jnp.int32([7])))
        assert "tensorflow" not in sys.modules, "tensorflow was imported"

    return {"JAX": lambda: check(lambda f: f), "jax.jit": lambda: check(jax.jit)}


def check_available(host: str) -> None:
    """What ``custom_ops.available`` says about this environment is what is found out here by running."""
    reasons = {row.host: row.reason for row in custom_ops.available("rms_norm") if row.op == "TfToolkit>RmsNorm"}
    installed = {name: importlib.util.find_spec(name) is not None for name in ("tensorflow", "jax")}
    assert installed[host]
    obstacle = (toolchain.xla_obstacle() or "") if installed["tensorflow"] else "TensorFlow is not installed"
    assert reasons["TF CPU"].startswith("" if installed["tensorflow"] else "TensorFlow is not installed")
    assert reasons["XLA Host"].startswith(obstacle)
    assert reasons["JAX CPU"].startswith("" if installed["jax"] else "JAX is not installed")
    if installed["tensorflow"]:
        assert reasons["TF CPU"] == reasons["reference"] == ""
        assert reasons["XLA Host"] == obstacle
    if installed["jax"]:
        assert reasons["JAX CPU"] == ""


class UnavailableError(Exception):
    """Not here, for a reason that is known and was made sure of."""


def outcome(check: Callable[[], None]) -> str:
    """ "ok", "missing: why" or "failed: …"."""
    try:
        check()
    except UnavailableError as reason:
        return f"missing: {reason}"
    except Exception as error:
        traceback.print_exc()
        return f"failed: {type(error).__name__}: {next(filter(None, str(error).splitlines()), '')}"
    return "ok"


def main() -> None:
    host, wanted = sys.argv[1], json.loads(sys.argv[2])
    if host == "tensorflow":
        import tensorflow  # noqa: F401  (ops register with it as they are made, as in a program that imports it first)
    paths = {name: Path(path) for name, (path, _) in wanted.items()}
    for name, path in paths.items():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        assert found == wanted[name][1], f"{path} was changed: {found}"
    grammar = custom_ops.open_library("Grammar", paths["Grammar"])
    checks = tensorflow_checks(grammar) if host == "tensorflow" else jax_checks(grammar)
    opened = {library.name: library.path.resolve() for library in libraries.opened()}
    assert opened == {name: path.resolve() for name, path in paths.items()}, f"other files were opened: {opened}"
    check_available(host)
    versions = {"python": platform.python_version()}
    for package in ("tensorflow", "jax", "numpy", "ml_dtypes"):
        if importlib.util.find_spec(package):
            versions[package] = importlib.metadata.version(package)
    print(json.dumps({"versions": versions, "results": {name: outcome(check) for name, check in checks.items()}}))


if __name__ == "__main__":
    main()
