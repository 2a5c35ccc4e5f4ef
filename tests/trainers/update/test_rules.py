"""Every optimizer against its paper's update in float64; low precision; skipped steps; resumed to the bit."""

from functools import partial

import numpy as np
import optimizer_problem
import pytest
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers import optimizers
from tftoolkit.trainers.naming import named_variables

SLOW = pytest.mark.slow
ADAM = {"beta_2": 0.99, "epsilon": 1e-3}

# What makes it with a learning rate, its reference, and options of both.
RULES = {
    "Sgd": (optimizers.Sgd, optimizer_problem.sgd, {"momentum": 0.9}),
    "Adam": (optimizers.Adam, optimizer_problem.adamw, ADAM),
    "AdamW": (optimizers.AdamW, optimizer_problem.adamw, {**ADAM, "weight_decay": 0.1}),
    "RMSprop": (optimizers.RMSprop, optimizer_problem.rmsprop, {"epsilon": 1e-3}),
    "RMSprop centered": (
        optimizers.RMSprop,
        optimizer_problem.rmsprop,
        {"epsilon": 1e-3, "centered": True, "momentum": 0.8},
    ),
    "Adagrad": (optimizers.Adagrad, optimizer_problem.adagrad, {"epsilon": 1e-3}),
    "Lamb": (optimizers.Lamb, optimizer_problem.lamb, {**ADAM, "weight_decay": 0.1}),
    "Lion": (optimizers.Lion, optimizer_problem.lion, {"weight_decay": 0.1}),
    "Adafactor": (optimizers.Adafactor, optimizer_problem.adafactor, {"weight_decay": 0.1}),
    "Adafactor absolute": (
        optimizers.Adafactor,
        optimizer_problem.adafactor,
        {"relative_step": False, "scale_parameter": False},
    ),
    "Muon": (optimizers.Muon, optimizer_problem.muon, {**ADAM, "weight_decay": 0.1}),
    "Muon original": (optimizers.Muon, optimizer_problem.muon, {**ADAM, "weight_decay": 0.0, "adjust": "original"}),
    "Muon fused": (partial(optimizers.Muon, fused=True), optimizer_problem.muon, {**ADAM, "weight_decay": 0.1}),
}
BASE = [name for name in RULES if " " not in name]
FAST = [*BASE, "Muon fused"]
WRAPPED = {
    "Lookahead": lambda rate, **options: optimizers.Lookahead(optimizers.AdamW(rate, **options), sync_period=2),
    "SWA": lambda rate, **options: optimizers.SWA(optimizers.Lion(rate, **options), start=2, period=2),
}


def _falling(step):
    return 0.05 / (1.0 + tf.cast(step, tf.float32) / 10.0)


def _train(optimizer, dtype=tf.float32, compiled=None):
    """Weights by name. Refused steps in between must leave no trace."""
    weights, gradients = optimizer_problem.problem()
    variables = {name: tf.Variable(tf.cast(w, dtype)) for name, w in weights.items()}
    optimizer.build(list(variables.values()), names=list(variables))
    step = tf.function(optimizer.step, jit_compile=compiled) if compiled is not None else optimizer.step
    for i, each in enumerate(gradients):
        if i % 10 == 1:
            step([tf.cast(tf.fill(g.shape, np.nan), dtype) for g in each.values()], tf.constant(False))
        step([tf.cast(g, dtype) for g in each.values()], tf.constant(True))
    assert optimizer.iterations.numpy() == optimizer_problem.STEPS
    return variables


# 50 float32 updates of weights around 1, each rounded a few times: 50 * 5 * 2^-24 = 1.5e-5. The iteration of Muon
# multiplies small differences by up to 3.4445 in each of 5 rounds, and the moves are a hundredth of the weights.
def _assert_close(found, expected, tolerance=2e-5):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=SLOW)], ids=["graph", "xla"])
@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=SLOW) for name in RULES])
def test_the_papers_update_in_float64(name, compiled):
    make, rule, options = RULES[name]
    found = _train(make(_falling, **options), compiled=compiled)
    _assert_close(found, optimizer_problem.run(rule, **options))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=() if (name, dtype) in {("Sgd", "float16"), ("Lamb", "bfloat16")} else SLOW)
        for name in FAST
        for dtype in ("bfloat16", "float16")
    ],
)
def test_masters_of_low_precision_follow_the_same_reference(name, dtype):
    make, rule, options = RULES[name]
    kind = tf.as_dtype(dtype)
    optimizer = make(_falling, **options, master_weights=True)
    found = _train(optimizer, kind, compiled=False)
    expected = optimizer_problem.run(rule, rounded=lambda x: np.asarray(x, kind.as_numpy_dtype), **options)
    _assert_close(dict(zip(found, optimizer.slots["master"], strict=True)), expected)
    for slot, variables in optimizer.slots.items():
        assert {x.dtype for x in variables if x is not None} == {tf.float32}, slot
    for weight, master in zip(found.values(), optimizer.slots["master"], strict=True):
        assert np.all(tf.cast(master, kind) == weight)


@pytest.mark.parametrize("name", FAST)
def test_weights_of_bfloat16_take_gradients_of_float32(name):
    """As ``update.gradients`` gives them."""
    weight = tf.Variable(tf.ones([2, 2], tf.bfloat16))
    optimizer = RULES[name][0](0.125)
    optimizer.build([weight])
    optimizer.step([tf.fill([2, 2], 0.5)], tf.constant(True))
    assert np.all(tf.cast(weight, tf.float32) < 1)


class _Step(tf.Module):
    """Holds what a step of a trainer does."""

    def __init__(self, name):
        super().__init__()
        self.hidden, self.bias = tf.Variable(tf.ones([3, 2])), tf.Variable(tf.ones([2], tf.bfloat16))
        optimizer = (WRAPPED[name] if name in WRAPPED else RULES[name][0])(0.1, master_weights=True)
        weights = {"bias": self.bias, "hidden": self.hidden}
        self.update = trainers.Update(list(weights.values()), optimizer, clip_norm=1.0)

    def take(self, number, bad=None):
        one, other = (tf.random.stateless_normal(shape, [number, i]) for i, shape in enumerate(([2], [3, 2])))
        low = tf.cast(one if bad is None else tf.fill([2], bad), tf.bfloat16)
        return self.update.apply([low, other])

    def values(self):
        return {name: x.numpy() for name, x in named_variables(self).items()}


@pytest.mark.parametrize("name", [*FAST, *WRAPPED])
def test_a_skipped_step_leaves_every_bit_and_a_resumed_one_is_the_same(name):
    step = _Step(name)
    for number in range(3):  # also before and behind the steps in which the wrappers do something
        step.take(number)
        before = step.values()
        assert step.take(number, bad=np.nan)["skipped"].numpy() == 1
        changed = {key for key, value in step.values().items() if value.tobytes() != before[key].tobytes()}
        assert changed <= {"update/skipped", "update/skipped_in_a_row"}
    other = _Step(name)
    assert other.values().keys() == before.keys()
    for key, variable in named_variables(other).items():
        variable.assign(step.values()[key])
    for number in range(3, 6):
        step.take(number)
        other.take(number)
    for key, value in step.values().items():
        np.testing.assert_array_equal(other.values()[key], value, err_msg=key)


# Those with slots of other shapes, of some weights only, and of weights themselves.
RESUMED = ("Adafactor", "Muon fused", *WRAPPED)


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=SLOW if one in RESUMED else pytest.mark.exhaustive) for one in (*FAST, *WRAPPED)],
)
def test_a_trainers_run_resumes_to_the_bit(example, tmp_path, name):
    """With the trainer's own checkpoints, compiled, from embeddings to scales."""

    def run(folder, steps):
        make = WRAPPED[name] if name in WRAPPED else RULES[name][0]
        step = example.Classifier(example.Attention(), make(1e-3))
        trainers.Trainer(step, example.pipeline(), tmp_path / folder, runner="xla_chunk", checkpoint_every=4).run(steps)
        return example.values(step)

    whole = run("whole", 8)
    run("parts", 5)
    for key, value in run("parts", 8).items():
        np.testing.assert_array_equal(value, whole[key], err_msg=key)
