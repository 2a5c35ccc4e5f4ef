"""The ops of detectors give in JAX what they give in TensorFlow, gradients too, and need no TensorFlow there."""

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

# For both: calls of features x [2, 6, 7, 4], offsets o [2, 6, 7, 18] and a weight w [3, 3, 4, 5].
CALLS = """
calls = {
    "roi_align": lambda ops, x, o, w: ops.roi_align(x, boxes, indices, (3, 2), spatial_scale=0.5),
    "roi_pool": lambda ops, x, o, w: ops.roi_pool(x, boxes, indices, 2),
    "deform_conv2d": lambda ops, x, o, w: ops.deform_conv2d(x, o, w, w[0, 0, 0], mask=o[..., :9], padding=1),
    "batched_nms": lambda ops, x, o, w: x[0] * (float_(ops.batched_nms(
        boxes, x[0, :3, 0, 0], indices, iou_threshold=0.1, max_output=4).indices[0]) + 2.0),
    "soft_nms": lambda ops, x, o, w: x[0] * (float_(ops.soft_nms(boxes, scores, max_output=3).indices[1]) + 2.0),
}
"""
IN_JAX = """
import sys
import jax, jax.numpy as jnp, numpy as np
from tftoolkit import custom_ops
data = np.load(sys.argv[1])
arrays = [jnp.asarray(data[name]) for name in ("x", "o", "w")]
boxes, indices, scores = (jnp.asarray(data[name]) for name in ("boxes", "indices", "scores"))
float_ = lambda one: one.astype("float32")
found = {}
for name, call in calls.items():
    run = jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(call(custom_ops, *a))), (0, 1, 2))
    value, gradients = jax.jit(run)(*arrays)
    for part, array in zip(("value", "x", "o", "w"), (value, *gradients)):
        found[f"{name}.{part}"] = array
np.savez(sys.argv[2], **found)
assert "tensorflow" not in sys.modules, "tensorflow was imported"
"""


def test_values_and_gradients(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 6, 7, 4), "o": (2, 6, 7, 18), "w": (3, 3, 4, 5)}
    data = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    data |= {"boxes": np.array([[0, 1, 6, 5], [1, 0, 5, 5.5], [2.5, 2, 9, 9]], np.float32)}
    data |= {"indices": np.array([0, 1, 1], np.int32), "scores": np.array([0.5, 0.9, 0.7], np.float32)}
    np.savez(tmp_path / "data.npz", **data)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    files = [tmp_path / "data.npz", tmp_path / "found.npz"]
    command = [sys.executable, "-c", f"{CALLS}{IN_JAX}", *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(files[1])

    def number(one: tf.Tensor) -> tf.Tensor:
        return tf.cast(one, tf.float32)

    namespace = {name: tf.constant(data[name]) for name in ("boxes", "indices", "scores")} | {"float_": number}
    exec(CALLS, namespace)
    for name, call in namespace["calls"].items():
        tensors = [tf.constant(data[part]) for part in shapes]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = tf.reduce_sum(tf.sin(call(custom_ops, *tensors)))
        gradients = tape.gradient(value, tensors, unconnected_gradients="zero")
        for part, right in zip(("value", *shapes), (value, *gradients), strict=True):
            np.testing.assert_allclose(found[f"{name}.{part}"], right, rtol=1e-4, atol=1e-4, err_msg=f"{name} {part}")
