"""CRFs, bags of embeddings, AdamW and the ops of masks give in JAX what they give in TensorFlow, without TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops

pytest.importorskip("jax")
pytestmark = pytest.mark.slow

# For both: of x [4, 6, 5], transitions or a table w [5, 5], weights v [7] and whole numbers. Those in values have no
# gradient in JAX.
CALLS = """
bags = lambda mode, weighted=False: lambda ops, x, w, v: ops.embedding_bag(
    w, ids, borders, mode=mode, weights=v * v if weighted else None)
rows = lambda mode, weighted=False: lambda ops, x, w, v: ops.embedding_bag(
    w, padded, mode=mode, weights=x[0, :3, :4] ** 2 if weighted else None)
calls = {
    "crf_log_likelihood": lambda ops, x, w, v: ops.crf_log_likelihood(x, tags, lengths, w),
    "crf_log_likelihood with ends": lambda ops, x, w, v: ops.crf_log_likelihood(x, tags, lengths, w, v[:5], v[2:]),
    "sum": bags("sum"), "weighted sum": bags("sum", True), "mean": bags("mean"), "weighted mean": bags("mean", True),
    "max": bags("max"), "padded sum": rows("sum"), "padded weighted sum": rows("sum", True),
    "padded mean": rows("mean"), "padded weighted mean": rows("mean", True), "padded max": rows("max"),
}
values = {
    "crf_decode": lambda ops, x, w, v: ops.crf_decode(x, lengths, w, v[:5]),
    "crf_marginals": lambda ops, x, w, v: [ops.crf_marginals(x, lengths, w, v[:5], v[2:])],
    "connected_components": lambda ops, x, w, v: [ops.connected_components(mask)],
    "components of floats": lambda ops, x, w, v: [ops.connected_components(x)],
    "distances": lambda ops, x, w, v: [ops.euclidean_distance_transform(mask)],
    "median_filter2d": lambda ops, x, w, v: [ops.median_filter2d(x, (3, 2), "CONSTANT", 0.5)],
    "medians of bytes": lambda ops, x, w, v: [ops.median_filter2d(mask, 3)],
    "adamw": lambda ops, x, w, v: [one for each in ops.adamw(
        mask[0, 0] == mask[0, 0], v[0] * v[0], 2 + 0 * v[0], [x, w], [x + 1, w - 1], [x * x, w * w], [x - 2, w + w],
        weight_decays=[0.1, 0.0]) for one in each],
}
"""
IN_JAX = """
import sys
import jax, jax.numpy as jnp, numpy as np
from tftoolkit import custom_ops
data = {name: jnp.asarray(array) for name, array in np.load(sys.argv[1]).items()}
arrays = [data.pop(name) for name in ("x", "w", "v")]
globals().update(data)
found = {}
for name, call in calls.items():
    run = jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(call(custom_ops, *a))), (0, 1, 2))
    value, gradients = jax.jit(run)(*arrays)
    found |= {f"{name}.{part}": array for part, array in zip(("value", "x", "w", "v"), (value, *gradients))}
for name, call in values.items():
    outputs = jax.jit(lambda *a: list(call(custom_ops, *a)))(*arrays)
    found |= {f"{name}.{place}": array for place, array in enumerate(outputs)}
np.savez(sys.argv[2], **found)
assert "tensorflow" not in sys.modules, "tensorflow was imported"
"""


def right_values(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What TensorFlow gives."""
    namespace = {name: tf.constant(array) for name, array in arrays.items()}
    tensors = {name: namespace.pop(name) for name in ("x", "w", "v")}
    exec(CALLS, namespace)
    right = {}
    for name, call in namespace["calls"].items():
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = tf.reduce_sum(tf.sin(call(custom_ops, *tensors.values())))
        gradients = tape.gradient(value, tensors, unconnected_gradients="zero")
        right |= {f"{name}.{part}": tf.convert_to_tensor(one) for part, one in {"value": value, **gradients}.items()}
    for name, call in namespace["values"].items():
        right |= {f"{name}.{place}": one for place, one in enumerate(call(custom_ops, *tensors.values()))}
    return {name: one.numpy() for name, one in right.items()}


def test_values_and_gradients(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"x": (4, 6, 5), "w": (5, 5), "v": (7,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {"tags": rng.integers(0, 5, (4, 6), np.int32), "lengths": np.array([6, 1, 0, 4], np.int32)}
    arrays |= {"ids": np.array([3, 4, 4, 0, 1, 0, 2], np.int32), "borders": np.array([0, 3, 3, 7], np.int32)}
    arrays |= {"padded": np.array([[3, -1, 4, 4], [-1] * 4, [0, 1, 0, 2]], np.int32)}
    arrays |= {"mask": rng.integers(0, 2, (8, 9), np.uint8)}
    files = [tmp_path / "data.npz", tmp_path / "found.npz"]
    np.savez(files[0], **arrays)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", f"{CALLS}{IN_JAX}", *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, right = dict(np.load(files[1])), right_values(arrays)
    assert list(found) == list(right)
    for name, one in right.items():
        np.testing.assert_allclose(found[name], one, rtol=1e-4, atol=1e-4, err_msg=name)
