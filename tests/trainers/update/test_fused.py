"""AdamW(fused=True) is AdamW(fused=False) but for rounding, whatever the step has besides, and its own runs repeat."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers import optimizers
from tftoolkit.trainers.update.optimizers import adam, rule

SLOW = pytest.mark.slow
EXHAUSTIVE = pytest.mark.exhaustive
RATES = trainers.schedules.cosine(3e-3, 40, warmup_steps=5)
OPTIONS = {
    "plain": {},
    "everything": {
        **{"clip_norm": 0.5, "ema": 0.9, "accumulate": 2},
        **{"learning_rate_factors": {"hidden": 0.5}, "no_weight_decay": ["bias"]},
    },
    "float16": {"precision": "float16", "clip_value": 0.01},
    "spikes": {"skip_spikes": 3.0, "learning_rate_factors": {"output": 0.0}},
}


class _Classifier(trainers.Step):
    def __init__(self, example, fused, weight_decay=0.1, **options):
        super().__init__()
        self.model = example.Mlp(dropout=0.0)
        optimizer = optimizers.AdamW(RATES, weight_decay=weight_decay, fused=fused)
        self.update = trainers.Update(self.model, optimizer, **options)

    def __call__(self, batch, key):
        def losses(batch, key):
            logits = self.model(tf.cast(batch["image"], self.update.compute_dtype), key)
            return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], tf.cast(logits, tf.float32))

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


def _train(example, folder, step, kind="graph", steps=30):
    trainers.Trainer(step, example.pipeline(), folder, runner=kind, checkpoint_every=10, log_every=5).run(steps)
    return example.values(step)


# That xla is xla_chunk bit for bit has a test of its own.
SELECTED = {
    **{("graph", "everything"): (), ("xla_chunk", "everything"): SLOW, ("eager", "plain"): SLOW},
    **{("graph", "float16"): SLOW, ("xla_chunk", "spikes"): SLOW},
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(kind, OPTIONS[name], id=f"{kind}-{name}", marks=SELECTED.get((kind, name), EXHAUSTIVE))
        for kind in ("eager", "graph", "xla_chunk")
        for name in OPTIONS
    ],
)
def test_fused_equals_plain_but_for_rounding(example, tmp_path, kind, options):
    """30 steps of up to 3e-3; gradients of float16 are rounded at places that a last bit decides."""
    plain = _train(example, tmp_path / "plain", _Classifier(example, False, **options), kind)
    fused = _train(example, tmp_path / "fused", _Classifier(example, True, **options), kind)
    assert fused.keys() == plain.keys()
    assert any(not np.array_equal(fused[name], plain[name]) for name in plain)  # else the kernel wasn't called
    loose = options.get("precision") == "float16"
    for name, value in plain.items():
        np.testing.assert_allclose(fused[name], value, rtol=1e-4, atol=2e-3 if loose else 2e-5, err_msg=name)
        assert fused[name].dtype == value.dtype


@pytest.mark.parametrize(
    "kind", [pytest.param("eager", marks=EXHAUSTIVE), "graph", pytest.param("xla_chunk", marks=SLOW)]
)
@pytest.mark.slow
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(example, tmp_path, kind):
    options = OPTIONS["everything"]
    whole = _train(example, tmp_path / "whole", _Classifier(example, True, **options), kind)
    _train(example, tmp_path / "parts", _Classifier(example, True, **options), kind, steps=17)
    resumed = _train(example, tmp_path / "parts", _Classifier(example, True, **options), kind)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@SLOW
def test_a_chunk_equals_single_compiled_steps_bit_for_bit(example, tmp_path):
    found = [_train(example, tmp_path / kind, _Classifier(example, True), kind) for kind in ("xla", "xla_chunk")]
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


@SLOW
@pytest.mark.parametrize("first", [False, True])
def test_either_continues_the_others_checkpoint(example, tmp_path, first):
    expected = _train(example, tmp_path / "expected", _Classifier(example, False), steps=30)
    _train(example, tmp_path / "found", _Classifier(example, first), steps=20)
    step = _Classifier(example, not first)
    found = _train(example, tmp_path / "found", step, steps=30)
    assert step.update.optimizer.iterations.numpy() == 30
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-5, err_msg=name)


def test_a_step_in_a_graph_updates_weights_where_they_lie():
    """Also those that the gradients needed."""
    model = tf.Module()
    model.a, model.b = (tf.Variable(tf.random.stateless_normal([64, 64], [0, i])) for i in range(2))
    update = trainers.Update(model, optimizers.AdamW(0.1, fused=True))
    kept = [*update.weights, *update.optimizer.slots["m"], *update.optimizer.slots["v"]]

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(tf.sin(x @ model.a) @ model.b))
        return update.apply(tape.gradient(loss, update.weights))

    def places():
        return [np.asarray(memoryview(variable.read_value())).ctypes.data for variable in kept]

    step(tf.ones([100, 64]))
    before = places()
    for _ in range(3):
        step(tf.ones([100, 64]))
        assert places() == before


def test_models_of_keras(example, tmp_path):
    keras = pytest.importorskip("keras")
    values = []
    for fused in (False, True):
        model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, kernel_initializer="ones")])
        update = trainers.Update(model, optimizers.AdamW(0.1, fused=fused), no_weight_decay=["*bias"])
        for size in (1.0, -3.0):
            update.apply([tf.fill(weight.shape, size) for weight in update.weights])
        values.append([weight.numpy() for weight in update.weights])
    np.testing.assert_allclose(values[1][0], values[0][0], rtol=1e-6)
    np.testing.assert_allclose(values[1][1], values[0][1], rtol=1e-6)


def test_where_it_cannot_work(monkeypatch):
    on_gpu = SimpleNamespace(dtype=tf.float32, name="kernel:0", device="/job:localhost/replica:0/task:0/device:GPU:0")
    for handlers in ({"CPU": 0}, {"CPU": 0, "CUDA": 0}):
        op = SimpleNamespace(handlers=handlers)
        monkeypatch.setattr(adam.library, "load_builtin", lambda _, op=op: SimpleNamespace(op=lambda _: op))
        if "CUDA" in handlers:
            adam._check_fusible([on_gpu])
        else:
            with pytest.raises(ValueError, match=r"kernel:0 is on .*GPU:0, but .* was built for the CPU alone"):
                adam._check_fusible([on_gpu])
    for module in (adam, rule):
        monkeypatch.setattr(module, "is_asynchronous", lambda: True)
    for option in ("fused", "master_weights"):
        with pytest.raises(ValueError, match=f"{option}=True overwrites what other workers of parameter servers"):
            optimizers.AdamW(0.1, **{option: True}).build([tf.Variable(1.0)])


@SLOW
def test_without_a_compiler_it_says_so_at_once_and_the_plain_one_works(tmp_path):
    script = """
from tftoolkit import custom_ops, trainers
trainers.optimizers.AdamW(0.1)
try:
    trainers.optimizers.AdamW(0.1, fused=True)
except custom_ops.BuildError as error:
    assert "no C++ compiler found (looked for $CXX=no-such-compiler)" in str(error), error
else:
    raise AssertionError("it was made")
"""
    environment = {**os.environ, "CXX": "no-such-compiler", "TFTOOLKIT_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
