"""Micro-batches: as good as the whole batch, whatever the weights of the examples."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers

MODES = ["eager", "graph", "xla"]
KEY = tf.constant([1, 2])


class Tokens(trainers.Step):
    """Predicts a number per token; padding has weight 0."""

    def __init__(self, accumulate, dtype=tf.float32, **options):
        super().__init__()
        rng = np.random.default_rng(0)
        self.model = tf.Module()
        self.model.table = tf.Variable(rng.normal(size=[7, 5]), dtype=dtype)
        self.model.kernel = tf.Variable(rng.normal(size=[5, 3]), dtype=dtype)
        optimizer = trainers.optimizers.AdamW(trainers.schedules.cosine(0.1, 20, warmup_steps=3))
        self.update = trainers.Update(self.model, optimizer, accumulate=accumulate, **options)

    def __call__(self, batch, key):
        def losses(batch, key):
            hidden = tf.gather(self.model.table, batch["token"])
            error = tf.reduce_sum(tf.tanh(hidden @ self.model.kernel) - batch["target"][..., None], -1) ** 2
            return trainers.Losses(error, batch["weight"], {"large": tf.cast(error > 1, error.dtype)})

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


def _batches(count, dtype=np.float32, size=12):
    rng = np.random.default_rng(1)
    for _ in range(count):
        weight = rng.integers(0, 2, size=[size, 9]).astype(dtype)
        weight[1::4] = 0  # one micro-batch of four weighs nothing at all
        yield {
            "token": rng.integers(0, 7, size=[size, 9]),
            "target": rng.normal(size=[size, 9]).astype(dtype),
            "weight": weight,
        }


def _train(accumulate, mode="eager", dtype=tf.float32, steps=6, **options):
    step = Tokens(accumulate, dtype, **options)
    function = step if mode == "eager" else tf.function(step, jit_compile=mode == "xla")
    for batch in _batches(steps, dtype.as_numpy_dtype):
        metrics = function({name: tf.constant(value) for name, value in batch.items()}, KEY)
    return step, {name: value.numpy() for name, value in metrics.items()}


FAST = [("eager", 12), ("graph", 4)]
SLOW = [("xla", 2), ("xla", 4)]  # the compiled whole batch is trained once for both


@pytest.fixture(scope="module")
def whole():
    """The whole batch at once, by mode."""
    return functools.cache(lambda mode: _train(1, mode, dtype=tf.float64, ema=0.9))


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        *FAST,
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW),
        *(
            pytest.param(*pair, marks=pytest.mark.exhaustive)
            for pair in itertools.product(MODES, [2, 4, 12])
            if pair not in FAST + SLOW
        ),
    ],
)
def test_accumulating_equals_the_whole_batch_with_unequal_masks(whole, mode, parts):
    """In float64, where the rounding of float32 can't hide a wrong weight: some hundred roundings of 1e-16."""
    whole, metrics = whole(mode)
    split, split_metrics = _train(parts, mode, dtype=tf.float64, ema=0.9)
    for name, variable in whole.named_variables().items():
        np.testing.assert_allclose(split.named_variables()[name].numpy(), variable.numpy(), rtol=1e-12, atol=1e-13)
    assert split_metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(split_metrics[name], value, rtol=1e-6)
    assert split.update.optimizer.iterations.numpy() == 6
    assert split.update.ema.updates.numpy() == 6


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        *(("eager", 3), ("graph", 1), ("xla", 3)),
        *(pytest.param(*pair, marks=pytest.mark.exhaustive) for pair in (("eager", 1), ("graph", 3), ("xla", 1))),
    ],
)
def test_gradient_of_the_weighted_mean_against_float64(mode, parts):
    """The error is at most that of float32 sums of 108 terms, a few dozen times 6e-8 of the largest gradient."""
    wide, narrow = Tokens(1, tf.float64), Tokens(parts)
    (batch,) = _batches(1, np.float64)
    with tf.GradientTape() as tape:
        hidden = tf.gather(wide.model.table, batch["token"])
        error = tf.reduce_sum(tf.tanh(hidden @ wide.model.kernel) - batch["target"][..., None], -1) ** 2
        loss = tf.reduce_sum(error * batch["weight"]) / tf.reduce_sum(batch["weight"])
    expected = tape.gradient(loss, wide.update.weights)

    def mean_gradients(batch):
        def losses(batch, key):
            hidden = tf.gather(narrow.model.table, batch["token"])
            error = tf.reduce_sum(tf.tanh(hidden @ narrow.model.kernel) - batch["target"][..., None], -1) ** 2
            return trainers.Losses(error, batch["weight"])

        found = narrow.update.gradients(losses, batch, KEY)
        return [total / found.weight for total in found.sums], found.metrics()["loss"]

    function = mean_gradients if mode == "eager" else tf.function(mean_gradients, jit_compile=mode == "xla")
    narrow_batch = {k: tf.constant(v, tf.float32 if v.dtype == np.float64 else None) for k, v in batch.items()}
    found, mean = function(narrow_batch)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            a, tf.convert_to_tensor(b), rtol=0, atol=3e-6 * np.abs(tf.convert_to_tensor(b)).max()
        )
    np.testing.assert_allclose(mean, loss, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 4])
def test_many_steps_in_one_program_repeat_the_single_step_bit_for_bit(parts):
    """What the runner xla_chunk does; with micro-batches it is a loop within the loop."""
    batches = [{name: tf.constant(value) for name, value in batch.items()} for batch in _batches(8, size=64)]
    stacked = {name: tf.stack([batch[name] for batch in batches]) for name in batches[0]}
    options = {"ema": 0.99, "clip_norm": 1.0, "skip_spikes": 3.0}
    single, chunk = Tokens(parts, **options), Tokens(parts, **options)
    compiled = tf.function(single, jit_compile=True)
    losses = [compiled(batch, KEY)["loss"].numpy() for batch in batches]

    @tf.function(jit_compile=True)
    def many(stacked):
        def body(i, array):
            return i + 1, array.write(i, chunk({name: value[i] for name, value in stacked.items()}, KEY)["loss"])

        array = tf.TensorArray(tf.float32, 8, element_shape=[])
        return tf.while_loop(lambda i, _: i < 8, body, (tf.constant(0), array), maximum_iterations=8)[1].stack()

    np.testing.assert_array_equal(many(stacked), losses)
    for name, variable in single.named_variables().items():
        np.testing.assert_array_equal(chunk.named_variables()[name].numpy(), variable.numpy(), err_msg=name)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_last_smaller_batch_of_unknown_size(mode):
    whole, split = Tokens(1, tf.float64), Tokens(4, tf.float64)
    (batch,) = _batches(1, np.float64, size=11)
    spec = {n: tf.TensorSpec([None, 9], tf.as_dtype(v.dtype)) for n, v in batch.items()}
    function = split if mode == "eager" else tf.function(split, input_signature=[spec, tf.TensorSpec([2], tf.int32)])
    tensors = {n: tf.constant(v) for n, v in batch.items()}
    if mode == "eager":  # where the size is known
        with pytest.raises(ValueError, match="accumulate=4 doesn't divide the batch of 11"):
            function(tensors, KEY)
        return
    whole(tensors, KEY)
    function(tensors, KEY)
    for a, b in zip(split.update.weights, whole.update.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_each_micro_batch_draws_from_its_own_key():
    weight = tf.Variable([0.0])
    keys = []

    def losses(batch, key):
        keys.append(tuple(key.numpy()))
        return weight * batch

    update = trainers.Update([weight], trainers.optimizers.Sgd(0.1), accumulate=3)
    for key in ([1, 2], [1, 3]):
        update.gradients(losses, tf.ones([6]), tf.constant(key))
    assert len(set(keys)) == 6


def test_a_batch_that_weighs_nothing_is_skipped():
    step = Tokens(2)
    before = [weight.numpy() for weight in step.update.weights]
    (batch,) = _batches(1)
    metrics = step({**{n: tf.constant(v) for n, v in batch.items()}, "weight": tf.zeros([12, 9])}, KEY)
    assert metrics["skipped"].numpy() == 1
    for weight, old in zip(step.update.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


def test_what_is_easy_to_get_wrong_is_refused():
    weight = tf.Variable([1.0, 2.0])
    update = trainers.Update([weight], trainers.optimizers.Sgd(0.1), accumulate=2)
    batch = tf.ones([4, 2])
    with pytest.raises(ValueError, match="returned a scalar"):
        update.gradients(lambda x, _: tf.reduce_mean(x * weight), batch, KEY)
    with pytest.raises(ValueError, match=r"weights of Losses must have the losses' shape \(2, 2\), but has \(2, 1\)"):
        update.gradients(lambda x, _: trainers.Losses(x * weight, x[:, :1]), batch, KEY)
    with pytest.raises(ValueError, match="accuracy of Losses"):
        update.gradients(lambda x, _: trainers.Losses(x * weight, metrics={"accuracy": 1.0}), batch, KEY)
    with pytest.raises(TypeError, match="floating-point"):
        update.gradients(lambda x, _: tf.cast(x * weight, tf.int32), batch, KEY)
    with pytest.raises(ValueError, match="one leading dimension"):
        update.gradients(lambda x, _: x["a"] * weight, {"a": batch, "b": tf.constant(1.0)}, KEY)
    with pytest.raises(ValueError, match=r"accumulate=2.*update\.gradients"):
        update.apply([tf.ones([2])])
    with pytest.raises(ValueError, match="accumulate"):
        trainers.Update([tf.Variable(1.0)], trainers.optimizers.Sgd(0.1), accumulate=0)
