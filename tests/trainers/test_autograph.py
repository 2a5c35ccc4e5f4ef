"""AutoGraph converts users' functions wherever this package calls them, and leaves the package's own alone."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.autograph.impl import conversion

from tftoolkit import pipelines, trainers
from tftoolkit.trainers.update import gradients, optimizers, recompute, update


def test_what_is_converted():
    for own in (update.Update.apply, optimizers.AdamW.step, gradients.accumulated, trainers.Runner.call):
        assert conversion.is_allowlisted(own)
    for others in (Branching.__call__, recompute.rematerialize):
        assert not conversion.is_allowlisted(others)


def _rate(step):
    if step < 2:
        return tf.constant(0.5)
    return tf.constant(0.25)


class OnlyUp(trainers.optimizers.Optimizer):
    """An update rule of a user's own, with a branch on a tensor."""

    def slot_names(self):
        return ()

    def step(self, gradients, ok):
        for weight, gradient in zip(self.weights, gradients, strict=True):
            if ok and tf.reduce_sum(gradient) < 0:
                weight.assign_sub(self.learning_rate * gradient)
        self.iterations.assign_add(1)


class Branching(trainers.Step):
    """Branches on tensors in the step, in its losses and in what these call."""

    def __init__(self):
        super().__init__()
        self.w = tf.Variable(1.0)
        self.update = trainers.Update([self.w], OnlyUp(_rate), accumulate=2)

    def _sign(self, x):
        if tf.reduce_sum(x) > 0:
            return 1.0
        return -1.0

    def __call__(self, batch, key):
        def losses(part, key):
            if tf.reduce_sum(part["x"]) > 1000:
                return tf.zeros_like(part["x"])
            return -self.w * self._sign(part["x"]) * tf.abs(part["x"])

        found = self.update.gradients(losses, batch, key)
        metrics = found.metrics() | self.update.apply(found)
        count = 0
        for x in batch["x"]:
            if x > 2:
                count += 1
        return metrics | {"above": count}


@pytest.mark.parametrize("runner", [pytest.param("graph", marks=pytest.mark.slow), "xla_chunk"])
def test_branches_on_tensors_work_as_eagerly(tmp_path, runner):
    p = pipelines.Pipeline(pipelines.sources.arrays({"x": np.arange(-8, 8, dtype=np.float32)})).batch(4)
    found = {}
    for kind in ("eager", runner):
        step = Branching()
        summary = trainers.Trainer(step, p, tmp_path / kind, runner=kind, log_every=1).run(4)
        found[kind] = float(step.w), summary.metrics["above"], summary.metrics["learning_rate"]
    assert found[runner] == found["eager"]
    assert found["eager"][1:] == (4, 0.25)


def test_where_a_step_went_wrong_is_told_without_our_lines():
    class Wrong(Branching):
        def __call__(self, batch, key):
            return {"x": self.w + tf.constant("text")}

    p = pipelines.Pipeline(pipelines.sources.arrays({"x": np.zeros(8, np.float32)})).batch(4)
    with pytest.raises(TypeError) as raised:
        trainers.Runner(Wrong(), p.element_spec, kind="graph")
    account = "".join(getattr(raised.value, "__notes__", [])) + str(raised.value)
    assert "test_autograph.py" in account
    assert "state_guard.py" not in account
