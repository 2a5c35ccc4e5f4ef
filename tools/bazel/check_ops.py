"""Opens Bazel's op host and op libraries in TensorFlow and compares rms_norm with NumPy in float64.

Usage: check_ops.py HOST.so FOLDER.so...
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Bazel builds the CPU kernels only

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import builder, library

EPSILON = 1e-5


def install(host: Path, libraries: list[Path]) -> None:
    """Puts the files where the package looks for what it has compiled before."""
    cache = Path(tempfile.mkdtemp(prefix="tftoolkit-", dir=os.environ["TEST_TMPDIR"]))
    os.environ["TFTOOLKIT_CACHE_DIR"] = str(cache)
    recipes = {host: builder.host_recipe()} | {path: library.builtin_recipe(path.stem) for path in libraries}
    for path, recipe in recipes.items():
        builder.library_path(recipe, cache_dir=cache).symlink_to(path)


def check_mapped(paths: list[Path]) -> None:
    """Fails when something else than these files was loaded."""
    mapped = Path("/proc/self/maps").read_text()
    for path in paths:
        assert str(path) in mapped, f"{path} is not loaded: the package has compiled a file of its own"


def rms_norm(x: np.ndarray, gamma: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, ...]:
    """y, dx and dgamma; see custom_ops/rms_norm."""
    inv = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON)
    dot = np.mean(dy * gamma * x, axis=-1, keepdims=True)
    return x * inv * gamma, inv * (dy * gamma - x * inv * inv * dot), np.sum(dy * x * inv, axis=0)


def compiled(x: tf.Tensor, gamma: tf.Tensor, dy: tf.Tensor) -> list[tf.Tensor]:
    """What ``rms_norm`` returns, from the op and its gradient op."""
    with tf.GradientTape() as tape:
        tape.watch([x, gamma])
        y = custom_ops.rms_norm(x, gamma, epsilon=EPSILON)
    return [y, *tape.gradient(y, [x, gamma], output_gradients=dy)]


def check_rms_norm(run: Callable[..., list[tf.Tensor]]) -> None:
    rng = np.random.default_rng(0)
    x, gamma, dy = (rng.standard_normal(shape, np.float32) for shape in [(300, 257), (257,), (300, 257)])
    expected = rms_norm(*(array.astype(np.float64) for array in (x, gamma, dy)))
    for actual, wanted in zip(run(*map(tf.constant, (x, gamma, dy))), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def main() -> None:
    host, *libraries = (Path(argument).resolve() for argument in sys.argv[1:])
    install(host, libraries)
    for path in libraries:
        importlib.import_module(f"tftoolkit.custom_ops.{path.stem}")  # registers its ops
    check_rms_norm(compiled)
    check_rms_norm(tf.function(compiled, jit_compile=True))
    check_mapped([host, *libraries])


if __name__ == "__main__":
    main()
