"""The ops of transformers give in JAX what they give in TensorFlow, gradients too, and need no TensorFlow there."""

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

# For both: calls of floating arrays x, y [2, 6, 4, 8], gamma, beta [8] and of whole numbers.
CALLS = """
spoken = lambda count: 0 * labels[:, 0, :count] + 3
lengths = lambda *counts: [0 * labels[:, 0, 0] + count for count in counts]
low = lambda x: x.astype("bfloat16") if hasattr(x, "astype") else tf.cast(x, "bfloat16")
calls = {
    "rms_norm": lambda ops, x, y, g, b: ops.rms_norm(x, g, bias=b),
    "add_rms_norm": lambda ops, x, y, g, b: sum(ops.rms_norm(x, g, residual=y)),
    "layer_norm": lambda ops, x, y, g, b: ops.layer_norm(x, g),
    "add_layer_norm": lambda ops, x, y, g, b: sum(ops.layer_norm(x, g, b, y)),
    "rotary_embedding": lambda ops, x, y, g, b: ops.rotary_embedding(x, positions, dim=6, base=100.0) * y,
    "rotary_embedding_counted": lambda ops, x, y, g, b: ops.rotary_embedding(x, start=3, interleaved=True) * y,
    "swiglu": lambda ops, x, y, g, b: ops.swiglu(x, y),
    "geglu": lambda ops, x, y, g, b: ops.geglu(x, y),
    "geglu_approximate": lambda ops, x, y, g, b: ops.geglu(x, y, approximate=True),
    "softmax_cross_entropy": lambda ops, x, y, g, b: ops.softmax_cross_entropy(labels, x, z_loss=0.1),
    "fused_linear_cross_entropy": lambda ops, x, y, g, b: ops.fused_linear_cross_entropy(
        labels // 2, x, y[0, 0], logit_softcap=5.0, label_smoothing=0.1, ignore_index=-50
    ),
    "ctc_loss": lambda ops, x, y, g, b: ops.ctc_loss(x[:, :, 0], spoken(2), *lengths(6, 2)),
    "rnnt_loss": lambda ops, x, y, g, b: ops.rnnt_loss(x, spoken(3), *lengths(5, 2), blank=1),
    "rnnt_loss_additive": lambda ops, x, y, g, b: ops.rnnt_loss_additive(
        x[:, :, 0], y[:, 0], spoken(3), *lengths(5, 2), fastemit=0.1
    ),
    "flash_attention": lambda ops, x, y, g, b: ops.flash_attention(x, y, y, causal=True, softcap=2.0),
    "flash_attention_biased": lambda ops, x, y, g, b: ops.flash_attention(x, y, x, bias=y[:, :1, :1, :6]),
    "dropout_add": lambda ops, x, y, g, b: ops.dropout_add(x, y, key, rate=0.3),
    "grid_sample": lambda ops, x, y, g, b: ops.grid_sample(x, y[..., :2], mode="bicubic", padding="reflection"),
    "grid_sample_3d": lambda ops, x, y, g, b: ops.grid_sample(x[:, None], y[:, None, ..., :3], align_corners=True),
    "global_norm": lambda ops, x, y, g, b: ops.global_norm([x, y]) + ops.global_norm([g, low(b), low(x)]),
}
"""
IN_JAX = """
import sys
import jax, jax.numpy as jnp, numpy as np
from tftoolkit import custom_ops
data = np.load(sys.argv[1])
arrays = [jnp.asarray(data[name]) for name in ("x", "y", "gamma", "beta")]
positions, labels, key = (jnp.asarray(data[name]) for name in ("positions", "labels", "key"))
found = {}
for name, call in calls.items():
    run = jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(call(custom_ops, *a))), (0, 1, 2, 3))
    value, gradients = jax.jit(run)(*arrays)
    for part, array in zip(("value", "x", "y", "gamma", "beta"), (value, *gradients)):
        found[f"{name}.{part}"] = array
np.savez(sys.argv[2], **found)
assert "tensorflow" not in sys.modules, "tensorflow was imported"
"""


def test_values_and_gradients(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 6, 4, 8), "y": (2, 6, 4, 8), "gamma": (8,), "beta": (8,)}
    data = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    data |= {"positions": np.arange(6, dtype=np.int32) * 1000, "key": np.array([5, -6], np.int32)}
    data["labels"] = np.where(rng.random((2, 6, 4)) < 0.2, -100, rng.integers(0, 8, (2, 6, 4))).astype(np.int32)
    np.savez(tmp_path / "data.npz", **data)
    program = f"{CALLS}{IN_JAX}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    files = [tmp_path / "data.npz", tmp_path / "found.npz"]
    done = subprocess.run([sys.executable, "-c", program, *files], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(files[1])
    namespace = {"tf": tf} | {name: tf.constant(data[name]) for name in ("positions", "labels", "key")}
    exec(CALLS, namespace)
    for name, call in namespace["calls"].items():
        tensors = [tf.constant(data[part]) for part in shapes]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = tf.reduce_sum(tf.sin(call(custom_ops, *tensors)))
        gradients = tape.gradient(value, tensors, unconnected_gradients="zero")
        for part, right in zip(("value", *shapes), (value, *gradients), strict=True):
            np.testing.assert_allclose(found[f"{name}.{part}"], right, rtol=1e-4, atol=1e-4, err_msg=f"{name} {part}")
