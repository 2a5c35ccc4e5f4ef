"""A transformer trains with the compiled ops as with plain operations, and is exported with proof.

``python tests/tftoolkit/models/test_decoders.py`` writes the golden losses, those of benchmarks/plain_ops.py, anew.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops, export, models

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).with_name("llama_losses.json")
TEXT = np.frombuffer((ROOT / "LICENSE").read_bytes(), np.uint8).astype(np.int32)
BATCH, LENGTH, STEPS = 8, 64, 200
# How far losses may be off. One unit in the last place of the embedding moves those of float32 by up to 1e-6. bfloat16
# has 8 bits, and the ops round less often than plain operations.
NOISE = {"float32": 1e-5, "bfloat16": 1e-2}


def losses(ops, dtype: str, steps: int) -> list[float]:
    """Of each step of Adam, with moments in float32."""
    model = models.Llama(256, width=64, layers=2, heads=4, kv_heads=2, dtype=dtype, ops=ops)
    weights = model.trainable_variables
    moments = [[tf.Variable(tf.zeros(weight.shape)) for _ in range(2)] for weight in weights]

    @tf.function(autograph=False)
    def step(tokens, t):
        with tf.GradientTape() as tape:
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        for weight, (m, v), gradient in zip(weights, moments, tape.gradient(loss, weights), strict=True):
            gradient = tf.cast(tf.convert_to_tensor(gradient), tf.float32)
            m.assign(0.9 * m + 0.1 * gradient)
            v.assign(0.99 * v + 0.01 * gradient**2)
            change = m / (1 - 0.9**t) / (tf.sqrt(v / (1 - 0.99**t)) + 1e-8)
            weight.assign(tf.cast(tf.cast(weight, tf.float32) - 1e-3 * change, weight.dtype))
        return loss

    rng = np.random.default_rng(1)
    found = []
    for t in range(steps):
        starts = rng.integers(0, len(TEXT) - LENGTH, BATCH)
        tokens = np.stack([TEXT[start : start + LENGTH + 1] for start in starts])
        found.append(float(step(tf.constant(tokens), tf.constant(t + 1.0))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NOISE)
def test_it_trains_as_with_plain_operations(dtype):
    golden = json.loads(GOLDEN.read_text())[dtype]
    found = losses(custom_ops, dtype, STEPS)
    np.testing.assert_allclose(found, golden, rtol=0, atol=NOISE[dtype])
    assert found[-1] < 0.6 * found[0]


def test_its_first_steps():
    golden = json.loads(GOLDEN.read_text())["float32"]
    np.testing.assert_allclose(losses(custom_ops, "float32", 3), golden[:3], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_exports(tmp_path, target):
    """Its ops are written as plain ones, and the file computes the model's logits."""
    model = models.Llama(50, width=32, layers=2, heads=4, kv_heads=2)
    signatures = {"logits": (model, [tf.TensorSpec([1, 16], tf.int32, "tokens")])}
    make = export.tflite if target == "tflite" else export.onnx
    report = make(model, tmp_path / f"model.{target}", signatures=signatures, input_ranges={"tokens": (0, 49)})
    assert [row.unproven for row in report.rows] == [()]
    assert (tmp_path / f"model.{target}").stat().st_size > 4 * 50 * 32 * 2


SCALED = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
DECODERS = {
    "llama": lambda: models.Llama(50, width=32, layers=2, heads=4, kv_heads=2),
    "scaled llama": lambda: models.Llama(50, width=32, layers=2, heads=4, rotary_scaling=SCALED),
    "gpt2": lambda: models.Gpt2(50, width=32, layers=2, heads=4, context=16),
}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("jit", [None, pytest.param(True, marks=pytest.mark.slow)])
def test_token_by_token_is_as_all_at_once(kind, jit):
    """Prompts of several lengths in one batch, padded at the right, each of which goes on at its own place."""
    model, lengths = DECODERS[kind](), tf.constant([5, 2, 7])
    tokens = tf.constant(np.random.default_rng(0).integers(0, 50, [3, 12]), tf.int32)
    together = model(tokens)
    decode = tf.function(model.decode, autograph=False, jit_compile=jit)
    prompts = tf.where(tf.range(7) < lengths[:, None], tokens[:, :7], 49)
    hidden, cache = decode(prompts, model.empty_cache(3, 16), 0)
    for place in range(5):
        logits = model.logits(hidden[:, 0] if place else tf.gather(hidden, lengths - 1, batch_dims=1))
        expected = tf.gather(together, lengths + place - 1, batch_dims=1)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
        following = tf.gather(tokens, lengths + place, batch_dims=1)[:, None]
        hidden, cache = decode(following, cache, lengths + place)


def test_positions():
    """Of rotary embeddings only differences matter; GPT-2's are rows of a table."""
    tokens = tf.constant(np.random.default_rng(0).integers(0, 50, [2, 6]), tf.int32)
    for kind, make in DECODERS.items():
        model = make()
        same = model(tokens, positions=tf.range(6))
        np.testing.assert_allclose(same, model(tokens), rtol=0, atol=1e-5)
        moved = np.abs(model(tokens, positions=tf.range(7, 13)) - same).max()
        assert moved > 1e-3 if kind == "gpt2" else moved < 1e-4


def test_dropout_is_decided_by_the_key():
    model = models.Gpt2(50, width=32, layers=2, heads=4, context=16, dropout=0.3)
    tokens = tf.ones([2, 6], tf.int32)
    one, again, other = (model(tokens, key=tf.constant(key)) for key in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(model(tokens), DECODERS["gpt2"]()(tokens))


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="width must be a multiple of heads, got width=30, heads=4"):
        models.Llama(10, width=30, layers=1, heads=4)
    with pytest.raises(ValueError, match="the size of a head must be even, got 5"):
        models.Llama(10, width=20, layers=1, heads=4)
    with pytest.raises(
        ValueError, match=r"scaling must be that of Llama 3\.1, with factor, .*; it has no low_freq_factor"
    ):
        models.Rotary(scaling={"factor": 2.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16})
    with pytest.raises(ValueError, match="heads must be a multiple of kv_heads, got heads=4, kv_heads=3"):
        models.Llama(10, width=32, layers=1, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match="width must be a multiple of heads, got width=30, heads=4"):
        models.Gpt2(10, width=30, layers=1, heads=4)
    with pytest.raises(ValueError, match="Gpt2 has no preset 'gpt3'; it has gpt2, gpt2-medium"):
        models.Gpt2.preset("gpt3")


if __name__ == "__main__":
    sys.path.append(str(ROOT / "benchmarks"))
    plain_ops = importlib.import_module("plain_ops")
    found = {dtype: [round(loss, 6) for loss in losses(plain_ops, dtype, STEPS)] for dtype in NOISE}
    GOLDEN.write_text(json.dumps(found) + "\n")
