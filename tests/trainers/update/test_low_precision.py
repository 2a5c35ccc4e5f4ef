"""AdamW of bfloat16 and float16 weights: float32 moments and masters, fused and plain alike, resumed to the bit."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers import optimizers

SLOW = pytest.mark.slow
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
LOW = {"bfloat16": tf.bfloat16, "float16": tf.float16}


class _Mlp(tf.Module):
    """Matrices of low precision, and a bias that stays in float32."""

    def __init__(self, example, dtype):
        super().__init__()
        whole = example.Mlp()
        self.hidden, self.output = (tf.Variable(tf.cast(x, dtype)) for x in (whole.hidden, whole.output))
        self.bias = tf.Variable(tf.zeros([32]))

    def __call__(self, images):
        low = tf.cast(images, self.hidden.dtype) @ self.hidden
        hidden = tf.nn.relu(tf.cast(low, tf.float32) + tf.cast(self.bias, tf.float32))
        return tf.cast(tf.cast(hidden, self.output.dtype) @ self.output, tf.float32)


class _Classifier(trainers.Step):
    """With ``tape``, the gradients come in the weights' types; from the update they come in float32."""

    def __init__(self, example, dtype="bfloat16", tape=False, optimizer=None, **options):
        super().__init__()
        self.model = _Mlp(example, LOW[dtype])
        self.tape = tape
        rates = trainers.schedules.cosine(3e-3, 40, warmup_steps=5)
        defaults = {"weight_decay": 0.1, "master_weights": True, "fused": True}
        self.update = trainers.Update(
            self.model,
            optimizers.AdamW(rates, **(defaults | (optimizer or {}))),
            learning_rate_factors={"hidden": 0.5},
            no_weight_decay=["bias"],
            **options,
        )

    def __call__(self, batch, key):
        def losses(batch, key):
            return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], self.model(batch["image"]))

        if not self.tape:
            gradients = self.update.gradients(losses, batch, key)
            return gradients.metrics() | self.update.apply(gradients)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(losses(batch, key))
        return {"loss": loss, **self.update.apply(tape.gradient(loss, self.update.weights))}


def _train(example, folder, step, kind="graph", steps=20):
    trainers.Trainer(step, example.pipeline(), folder, runner=kind, checkpoint_every=8, log_every=5).run(steps)
    return example.values(step)


def _close(found, expected, names=None):
    """Up to a step of the type: sums in another order are rounded to another neighbour now and then."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        if names is None or names in name:
            one, other = (np.asarray(x, np.float64) for x in (found[name], value))
            np.testing.assert_allclose(one, other, rtol=2**-7, atol=4e-4, err_msg=name)


EVERYTHING = {"clip_norm": 0.5, "ema": 0.9, "accumulate": 2}
CASES = {
    "everything": ("bfloat16", EVERYTHING, {}),
    "from a tape": ("bfloat16", {"tape": True, "clip_norm": 0.5}, {}),
    "no masters": ("bfloat16", {"ema": 0.9}, {"master_weights": False}),
    "half": ("float16", {"precision": "float16", "clip_value": 0.01}, {}),
    "half from a tape": ("float16", {"tape": True}, {"master_weights": False}),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if (kind, name) == ("graph", "everything") else SLOW)
        for kind, names in {
            "eager": ["everything", "no masters"],
            "graph": ["everything", "half"],
            "xla": ["half from a tape"],
            "xla_chunk": ["from a tape", "no masters", "half"],
        }.items()
        for name in names
    ],
)
def test_fused_equals_plain_but_for_rounding(example, tmp_path, kind, name):
    dtype, options, optimizer = CASES[name]
    steps = [_Classifier(example, dtype, optimizer=optimizer | {"fused": fused}, **options) for fused in (False, True)]
    plain, fused = (_train(example, tmp_path / str(i), step, kind, steps=12) for i, step in enumerate(steps))
    _close(fused, plain)
    assert fused["model/hidden"].dtype == LOW[dtype].as_numpy_dtype
    masters = {name for name in fused if "/master/" in name}
    has_masters = optimizer.get("master_weights", True)
    assert masters == {f"update/optimizer/slots/master/model/{x}" for x in ("hidden", "output") if has_masters}
    for name, value in fused.items():
        if "/slots/" in name:
            assert value.dtype == np.float32
        if "/master/" in name:
            weight = fused[name.partition("/master/")[2]]
            np.testing.assert_array_equal(value.astype(weight.dtype), weight)


@pytest.mark.parametrize(
    ("kind", "fused"),
    [("graph", True), ("xla_chunk", True), ("xla", False)],
)
@SLOW
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(example, tmp_path, kind, fused):
    def step():
        return _Classifier(example, optimizer={"fused": fused}, **EVERYTHING)

    whole = _train(example, tmp_path / "whole", step(), kind)
    _train(example, tmp_path / "parts", step(), kind, steps=11)
    resumed = _train(example, tmp_path / "parts", step(), kind)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@SLOW
@FUSED
def test_either_continues_the_others_checkpoint(example, tmp_path, fused):
    expected = _train(example, tmp_path / "expected", _Classifier(example))
    _train(example, tmp_path / "found", _Classifier(example, optimizer={"fused": fused}), steps=11)
    step = _Classifier(example, optimizer={"fused": not fused})
    _close(_train(example, tmp_path / "found", step), expected)
    assert step.update.optimizer.iterations.numpy() == 20


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in ((5, 3), (3,), ())]
    return weights, [[rng.normal(size=w.shape) * 10.0 ** rng.integers(-3, 2) for w in weights] for _ in range(40)]


def _reference(weights, gradients, dtype):
    """In float64; weights and gradients rounded as the optimizer gets them."""
    weights, m, v = [x.astype(dtype).astype(np.float64) for x in weights], [0.0] * 3, [0.0] * 3
    for t, each in enumerate(gradients, 1):
        for i, g in enumerate(x.astype(dtype).astype(np.float64) for x in each):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.99 * v[i] + 0.01 * g * g
            direction = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.99**t)) + 1e-3)
            weights[i] = weights[i] - 0.01 * (direction + 0.1 * weights[i])
    return weights, v


@FUSED
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=SLOW)], ids=["eager", "xla"])
@pytest.mark.parametrize("dtype", LOW.values(), ids=LOW)
def test_masters_and_moments_follow_the_float64_reference(problem, dtype, compiled, fused):
    """40 float32 updates of weights around 1, each rounded a few times: 40 * 4 * 2^-24 = 1e-5."""
    weights, gradients = problem
    optimizer = optimizers.AdamW(0.01, beta_2=0.99, epsilon=1e-3, weight_decay=0.1, master_weights=True, fused=fused)
    variables = [tf.Variable(tf.cast(w, dtype)) for w in weights]
    optimizer.build(variables)
    step = tf.function(optimizer.step, jit_compile=True) if compiled else optimizer.step
    for i, g in enumerate(gradients):
        if i % 5 == 1:  # refused steps must leave no trace
            step([tf.cast(tf.fill(x.shape, np.nan), dtype) for x in g], tf.constant(False))
        step([tf.cast(x, dtype) for x in g], tf.constant(True))
    expected, squares = _reference(weights, gradients, dtype.as_numpy_dtype)
    for i, variable in enumerate(variables):
        np.testing.assert_allclose(optimizer.slots["master"][i], expected[i], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(optimizer.slots["v"][i], squares[i], rtol=1e-5)
        assert np.all(tf.cast(optimizer.slots["master"][i], dtype) == variable)


@FUSED
def test_without_masters_small_updates_are_lost(fused):
    for masters, moved in ((False, 1.0), (True, 0.98828125)):  # 0.99, rounded to bfloat16
        weight = tf.Variable(tf.ones([2], tf.bfloat16))
        optimizer = optimizers.AdamW(1e-4, weight_decay=0.0, master_weights=masters, fused=fused)
        optimizer.build([weight])
        for _ in range(100):
            optimizer.step([tf.ones([2], tf.bfloat16)], tf.constant(True))
        np.testing.assert_array_equal(tf.cast(weight, tf.float32), [moved, moved])


@FUSED
def test_a_weight_that_is_loaded_later_takes_its_master_along(fused):
    weight = tf.Variable(tf.ones([2], tf.bfloat16))
    update = trainers.Update(
        [weight], optimizers.AdamW(1e-4, weight_decay=0.0, master_weights=True, fused=fused), ema=0.5
    )
    weight.assign([3.0, 1.0])
    update.apply([tf.ones([2], tf.bfloat16)])
    (master,) = update.optimizer.slots["master"]
    np.testing.assert_allclose(master, [2.9999, 0.9999], rtol=1e-6)
    before = master.numpy()
    with update.ema_weights():  # which comes back bit for bit, so it is no new weight
        pass
    update.apply([tf.ones([2], tf.bfloat16)])
    np.testing.assert_allclose(master, before - 1e-4, rtol=1e-6)


@FUSED
def test_a_step_that_is_skipped_leaves_every_bit(fused):
    weights = [tf.Variable(tf.constant([1.0, -0.0, 3e38], tf.bfloat16)), tf.Variable([1.0, 2.0])]
    update = trainers.Update(weights, optimizers.AdamW(0.1, master_weights=True, fused=fused), ema=0.5)
    good = [tf.ones([3], tf.bfloat16), tf.ones([2])]
    update.apply(good)
    before = [x.numpy().tobytes() for x in update.variables]
    names = {x.name for x in update.variables}
    for bad in (np.nan, np.inf, 3e38):  # the square of the last overflows
        metrics = update.apply([tf.constant([1, bad, 1], tf.bfloat16), good[1]])
        assert metrics["skipped"].numpy() == 1
    counters = [i for i, x in enumerate(update.variables) if x.name.startswith("skipped")]
    after = [x.numpy().tobytes() for x in update.variables]
    assert [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other] == counters, names


@FUSED
def test_the_norm_is_clipped_exactly(fused):
    """A scale rounded to bfloat16 would be off by up to 0.4 %."""
    weight, shadow = (tf.Variable(tf.zeros([1000], tf.bfloat16)) for _ in range(2))
    update = trainers.Update([weight], optimizers.AdamW(1.0, fused=fused), clip_norm=0.7)
    seen = []
    update.optimizer.step = lambda gradients, ok: seen.append(gradients[0])
    metrics = update.apply([tf.cast(tf.random.stateless_normal(shadow.shape, [1, 2]), tf.bfloat16)])
    assert metrics["grad_norm"].numpy() > 20
    # Each number is rounded by itself, to either side.
    np.testing.assert_allclose(np.linalg.norm(tf.cast(seen[0], tf.float64)), 0.7, rtol=3e-4)


def test_averages_are_kept_in_float32():
    """0.001 of the distance between 1 and 1.0078 is nothing to bfloat16."""
    weight = tf.Variable(tf.ones([1], tf.bfloat16))
    update = trainers.Update([weight], optimizers.Sgd(0.0), ema=0.999)
    for _ in range(100):
        weight.assign(tf.constant([1.0], tf.bfloat16))
        update.apply([tf.zeros([1], tf.bfloat16)])
    for _ in range(100):
        weight.assign(tf.constant([2.0], tf.bfloat16))
        update.apply([tf.zeros([1], tf.bfloat16)])
    expected = 1 + (1 - 0.999**100) / (1 - 0.999**200)
    (average,) = update.ema.slots["average"]
    assert average.dtype == tf.float32
    np.testing.assert_allclose(average, [expected], rtol=1e-5)
    with update.ema_weights():
        np.testing.assert_array_equal(tf.cast(weight, tf.float32), tf.cast(tf.cast(average, tf.bfloat16), tf.float32))
    np.testing.assert_array_equal(tf.cast(weight, tf.float32), [2.0])
