"""The built-in ops give the same bits for any number of threads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Saves arrays to the file that is its second argument, computed by as many threads as its first says.
SCRIPT = """
import sys, numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
from tftoolkit import custom_ops
rng = np.random.default_rng(0)
w, m, v, g = ([tf.constant(rng.random(s), tf.float32) for s in [(2000, 333), (7,), (100_001,)]] for _ in range(4))
new = custom_ops.adamw(True, 0.1, 3.0, w, m, v, g)
rows, ids = tf.constant(rng.random((50_000, 7)), tf.float32), rng.integers(0, 9000, 50_000)
new = [*new, custom_ops.adamw_rows(True, 0.1, 3.0, *(rows[:9000] + i for i in range(3)), ids, rows),
       [custom_ops.sum_rows(rows, ids)]]
x, gamma, dy = (tf.constant(rng.standard_normal(s), tf.float32) for s in [(20000, 33), (33,), (20000, 33)])
with tf.GradientTape() as tape:
    tape.watch([x, gamma])
    y = custom_ops.rms_norm(x, gamma)
gradients = list(tape.gradient(y, [x, gamma], output_gradients=dy))
labels, spoken = tf.range(20000) % 33, 1 + tf.range(30)[None] % 32
short = lambda x, *shape: tf.reshape(x[:shape[0] * shape[1]], [*shape, 33])
pairs, weights = lambda: gamma[:, None] - 2 * gamma, dy[:, 0] ** 2
corners = 60 * rng.random((300, 4)).astype("f") + [0, 0, 30, 30]
boxes = tf.cast(corners, tf.float32), labels[:300] % 2
mask = tf.cast(dy[:, :32] > -0.3, tf.uint8)
for function in (
    lambda: custom_ops.layer_norm(x, gamma, gamma, dy),
    lambda: custom_ops.rms_norm(x, gamma, residual=dy),
    lambda: custom_ops.rotary_embedding(tf.reshape(x[:, :32], [2, 10000, 4, 8])),
    lambda: custom_ops.swiglu(x, dy),
    lambda: custom_ops.geglu(x, dy),
    lambda: custom_ops.softmax_cross_entropy(labels, x),
    lambda: custom_ops.dropout_add(x, dy, [1, 2], rate=0.5),
    lambda: custom_ops.ctc_loss(tf.reshape(x, [4, 5000, 33]), tf.tile(spoken, [4, 30]), [5000] * 4, [900] * 4),
    lambda: custom_ops.rnnt_loss(tf.reshape(x, [8, 50, 50, 33]), tf.tile(spoken, [8, 2])[:, :49], [50] * 8, [49] * 8),
    lambda: custom_ops.rnnt_loss_additive(
        tf.reshape(x[:400], [2, 200, 33]), tf.reshape(dy[:62], [2, 31, 33]), tf.tile(spoken, [2, 1]), [200, 9], [30, 7]
    ),
    lambda: custom_ops.grid_sample(tf.reshape(x, [1, 100, 200, 33]), tf.reshape(dy[:, :2], [1, 200, 100, 2])),
    lambda: custom_ops.fused_linear_cross_entropy(labels[:700], x[:700], tf.concat([dy[:3000], gamma[None]], 0)),
    lambda: custom_ops.crf_log_likelihood(
        short(x, 40, 500), tf.reshape(labels, [40, 500]), [500] * 39 + [3], pairs(), gamma, gamma
    ),
    lambda: custom_ops.crf_marginals(short(x, 900, 6), labels[:900] % 7, pairs()),
    lambda: custom_ops.crf_decode(short(dy, 40, 500), [500] * 39 + [3], tf.stop_gradient(pairs())),
    lambda: custom_ops.embedding_bag(x, ids % 20000, range(0, 50_001, 10), weights=rows[:, 0] + gamma[0], mode="mean"),
    lambda: custom_ops.embedding_bag(x, tf.reshape(ids % 20000, [500, 100]), mode="max"),
    lambda: custom_ops.roi_align(short(x, 200, 100)[None], boxes[0], 0 * boxes[1], 7),
    lambda: custom_ops.roi_pool(tf.reshape(x, [2, 100, 100, 33]), *boxes, 7),
    lambda: custom_ops.deform_conv2d(
        short(x, 60, 50)[None], short(dy, 60, 50)[None, ..., :18], short(dy, 3, 3)[..., None] * gamma[:8] + gamma[0],
        mask=short(dy, 60, 50)[None, ..., 18:27], padding=1,
    ),
    lambda: custom_ops.median_filter2d(short(dy, 100, 200), 5),
    lambda: custom_ops.euclidean_distance_transform(tf.reshape(mask, [4, 400, 400, 1])),
    lambda: custom_ops.connected_components(tf.reshape(mask, [4, 400, 400])),
):
    with tf.GradientTape() as tape:
        tape.watch([x, gamma])
        outputs = tf.nest.flatten(function())
    found = tape.gradient(outputs, [x, gamma], unconnected_gradients="zero")
    gradients += outputs + [tf.convert_to_tensor(one) for one in found]  # those of rows, added up
np.savez(sys.argv[2], custom_ops.global_norm(g), *(tensor for each in new for tensor in each), y, *gradients)
"""


@pytest.mark.slow
def test_same_result_for_any_number_of_threads(tmp_path: Path) -> None:
    for threads in (1, 5):
        subprocess.run([sys.executable, "-c", SCRIPT, str(threads), tmp_path / f"{threads}.npz"], check=True)
    one, five = (np.load(tmp_path / f"{threads}.npz") for threads in (1, 5))
    assert len(one.files) == 17 + 23 * 3 + 1 + 2
    for key in one:
        np.testing.assert_array_equal(one[key], five[key])
