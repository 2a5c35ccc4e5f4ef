"""Rematerialised layers: the same gradients from less memory."""

import os
import re
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers

BLOCKS, WIDTH, BATCH = 4, 32, 1024
KEY = tf.constant([1, 2])


class Block(tf.Module):
    """Several activations from one weight."""

    def __init__(self, seed):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal([WIDTH, WIDTH], [1, seed]) / WIDTH**0.5)

    def __call__(self, x, key, *, mask):
        x = tf.where(mask, tf.nn.experimental.stateless_dropout(x, 0.1, seed=key), x)
        for _ in range(6):
            x = tf.tanh(x @ self.kernel) + x
        return x


class Tower(tf.Module):
    def __init__(self):
        super().__init__()
        self.blocks = [Block(seed) for seed in range(BLOCKS)]

    def __call__(self, x, key):
        for i, block in enumerate(self.blocks):
            x = block(x, tf.random.fold_in(key, i), mask=tf.abs(x) < 3)
        return x


def _gradients(recompute, mode, precision="float32"):
    model = Tower()
    if recompute:
        assert trainers.rematerialize(model, "blocks/*") == [f"blocks/{i}" for i in range(BLOCKS)]
    update = trainers.Update(model, trainers.optimizers.Sgd(0.1), precision=precision)
    images = tf.random.stateless_normal([BATCH, WIDTH], [3, 4])

    def found():
        def losses(x, key):
            return tf.reduce_mean(tf.cast(model(tf.cast(x, update.compute_dtype), key), tf.float32) ** 2, -1)

        return update.gradients(losses, images, KEY).sums

    function = found if mode == "eager" else tf.function(found, jit_compile=mode == "xla")
    return [gradient.numpy() for gradient in function()]


@pytest.mark.parametrize(
    ("mode", "precision", "rounding"),
    [
        ("eager", "float32", 0.0),
        pytest.param("eager", "bfloat16", 0.0, marks=pytest.mark.slow),
        # A graph adds the gradients of a kernel's six uses in another order.
        pytest.param("graph", "float32", 2.0**-22, marks=pytest.mark.slow),
        ("graph", "bfloat16", 2.0**-6),
    ],
)
def test_the_same_gradients(mode, precision, rounding):
    kept, recomputed = (_gradients(recompute, mode, precision) for recompute in (False, True))
    for a, b in zip(kept, recomputed, strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(b, a, rtol=0, atol=rounding * np.abs(a).max())


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.slow
def test_layers_of_keras(package, mode):
    package = pytest.importorskip(package)
    outcomes = []
    for recompute in (False, True):
        model = package.Sequential(
            [
                package.layers.Dense(8, activation="tanh", kernel_initializer=package.initializers.GlorotUniform(seed))
                for seed in range(3)
            ]
        )
        model.build([None, 8])
        if recompute:
            assert trainers.rematerialize(model, "dense_*") == ["dense_1", "dense_2"]
        update = trainers.Update(model, trainers.optimizers.Sgd(0.1))
        x = tf.random.stateless_normal([4, 8], [1, 2])

        def found(model=model, update=update, x=x):
            return update.gradients(lambda x, _: tf.reduce_sum(model(x, training=True) ** 2, -1), x, KEY).sums

        function = found if mode == "eager" else tf.function(found, jit_compile=True)
        outcomes.append([gradient.numpy() for gradient in function()])
    for a, b in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_xla_needs_less_memory_for_the_same_bits(tmp_path):
    """By its own report of what the compiled gradients need besides inputs and outputs.

    Kept: 6 activations per block (and the dropout masks). Recomputed: one input per block and one block's inside.
    """
    environment = os.environ | {"XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"}
    subprocess.run([sys.executable, __file__], env=environment, check=True, capture_output=True)
    reports = sorted(path for path in tmp_path.glob("*buffer-assignment.txt") if "found" in path.name)
    kept, recomputed = (
        sum(int(size) for size in re.findall(r"size (\d+), preallocated-temp", report.read_text()))
        for report in reports
    )
    assert recomputed < 0.5 * kept


def test_what_cannot_be_recomputed_is_refused():
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.layers.BatchNormalization()])
    model.build([None, 3])
    with pytest.raises(ValueError, match="dropout can't be rematerialised"):
        trainers.rematerialize(model, "dropout")
    with pytest.raises(ValueError, match="moving_mean"):
        trainers.rematerialize(model, "batch_norm*")
    with pytest.raises(ValueError, match=r"'encoder/\*' matches none of dense"):
        trainers.rematerialize(model, "encoder/*")
    parent = tf.Module()
    parent.child = tf.Module()
    with pytest.raises(TypeError, match="can't be called"):
        trainers.rematerialize(parent, "child")


if __name__ == "__main__":
    for one, other in zip(_gradients(False, "xla"), _gradients(True, "xla"), strict=True):
        np.testing.assert_array_equal(one, other)
