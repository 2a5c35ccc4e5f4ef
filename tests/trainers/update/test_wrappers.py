"""Lookahead and SWA by hand; Muon's choice of weights; what Lamb and Adafactor do at the edges; bad arguments."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers import optimizers
from tftoolkit.trainers.update.optimizers.muon import orthogonalized

GOOD = tf.constant(True)


def _built(optimizer, *weights, names=()):
    variables = [tf.Variable(weight) for weight in weights]
    optimizer.build(variables, names=names)
    return variables


def test_lookahead_is_the_papers():
    optimizer = optimizers.Lookahead(optimizers.Sgd(0.1), sync_period=3, slow_step_size=0.25)
    (weight,) = _built(optimizer, [1.0])
    slow = fast = 1.0
    for t in range(1, 9):
        optimizer.step([tf.constant([t / 2.0])], GOOD)
        fast -= 0.1 * t / 2.0
        if t % 3 == 0:
            slow = fast = slow + 0.25 * (fast - slow)
        np.testing.assert_allclose(weight, [fast], atol=5e-7)
    assert optimizer.iterations.numpy() == 8


@pytest.mark.parametrize("masters", [False, True])
def test_lookahead_of_bfloat16_keeps_what_rounding_would_lose_and_begins_anew_where_weights_are_loaded(masters):
    inner = optimizers.Sgd(1e-3, master_weights=masters)
    optimizer = optimizers.Lookahead(inner, sync_period=2)
    (weight,) = _built(optimizer, tf.ones([1], tf.bfloat16))
    for _ in range(4):
        optimizer.step([tf.ones([1])], GOOD)
    (slow,) = optimizer.slots["slow"]
    assert slow.dtype == tf.float32
    np.testing.assert_allclose(slow, [0.998 if masters else 1.0], rtol=1e-6)  # bfloat16's next number is 0.996
    if masters:
        np.testing.assert_array_equal(inner.slots["master"][0], slow)
    weight.assign([8.0])
    optimizer.step([tf.ones([1])], GOOD)
    np.testing.assert_array_equal(slow, [8.0])


def test_lookahead_has_the_inner_ones_schedule():
    optimizer = optimizers.Lookahead(optimizers.AdamW(trainers.schedules.Adjustable(0.1)))
    optimizer.learning_rate = 0.5
    assert optimizer.inner.learning_rate.numpy() == 0.5
    with optimizer.following(trainers.schedules.constant(2.0)):
        assert optimizer.inner.learning_rate.numpy() == optimizer.learning_rate.numpy() == 2.0
    assert optimizer.learning_rate.numpy() == 0.5


def test_swa_is_the_plain_mean_of_some_weights_in_place_for_a_while():
    optimizer = optimizers.SWA(optimizers.Sgd(0.5), start=2, period=3)
    weight = tf.Variable([1.0, -0.0])
    update = trainers.Update([weight], optimizer)
    seen = []
    for t in range(1, 10):
        with optimizer.swa_weights():
            expected = np.mean(seen, 0) if seen else weight.numpy()
            np.testing.assert_allclose(weight, expected, rtol=1e-6)
            with pytest.raises(RuntimeError, match="averaged weights are in place"):
                update.apply([tf.ones([2])])
        update.apply([tf.constant([t, -0.0])])
        if t in (2, 5, 8):
            seen.append(weight.numpy())
        raw = weight.numpy().tobytes()
        with pytest.raises(KeyError), optimizer.swa_weights():
            raise KeyError
        assert weight.numpy().tobytes() == raw
    assert optimizer.average.updates.numpy() == 3


def test_muon_takes_the_matrices_of_hidden_layers():
    shapes = {
        **{"embedding/table": [5, 2], "block/kernel": [2, 3], "block/bias": [3], "conv/kernel": [3, 3, 2, 2]},
        **{"heads/kernel": [3, 2], "head/kernel": [2, 5], "lm_head": [2, 5]},
    }

    def hidden(**options):
        optimizer = optimizers.Muon(0.1, **options)
        _built(optimizer, *(tf.ones(shape) for shape in shapes.values()), names=list(shapes))
        kept = {
            name: tuple(slot for slot, variables in optimizer.slots.items() if variables[i] is not None)
            for i, name in enumerate(shapes)
        }
        chosen = {name for name, is_hidden in zip(shapes, optimizer.hidden, strict=True) if is_hidden}
        assert {name for name, slots in kept.items() if slots == ("momentum",)} == chosen
        assert {name for name, slots in kept.items() if slots == ("m", "v")} == shapes.keys() - chosen
        return chosen

    assert hidden() == {"block/kernel", "heads/kernel"}
    assert hidden(others=["heads/*"]) == {"embedding/table", "block/kernel", "head/kernel", "lm_head"}
    with pytest.raises(ValueError, match="others: the pattern 'body' matches none of embedding/table, block/kernel"):
        hidden(others=["body"])


def test_an_update_tells_muon_the_names_below_the_model():
    model = tf.Module()
    model.head, model.body = tf.Variable(tf.ones([2, 2])), tf.Variable(tf.ones([2, 2]))
    optimizer = trainers.Update(model, optimizers.Muon(0.1)).optimizer
    assert dict(zip(optimizer.names, optimizer.hidden, strict=True)) == {"head": False, "body": True}


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (6, 6)])
def test_orthogonalized_has_singular_values_about_1(shape):
    matrix = np.random.default_rng(1).normal(size=shape) * 1e-3
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    found = orthogonalized(tf.constant(matrix, tf.float32)).numpy()
    inside = u.T @ found @ v.T
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-4
    large = np.diag(inside)[s > 0.05 * np.linalg.norm(s)]
    assert len(large) >= 3
    assert large.min() > 0.65
    assert large.max() < 1.25
    np.testing.assert_array_equal(orthogonalized(tf.zeros(shape)), np.zeros(shape))


def test_lamb_takes_the_plain_step_where_a_norm_is_0_or_no_decay_is_wanted():
    weights = [tf.Variable(value) for value in ([0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0])]
    optimizer = optimizers.Lamb(0.1, beta_1=0.0, beta_2=0.0, epsilon=0.5, weight_decay=0.0)
    optimizer.build(weights, decays=[True, False, True, True])
    ones, zeros = tf.ones([2]), tf.zeros([2])
    optimizer.step([ones, ones, ones, zeros], GOOD)
    step = 0.1 / 1.5
    scaled = 0.1 * 5 / 2**0.5
    expected = [[-step, -step], [3 - step, 4 - step], [3 - scaled, 4 - scaled], [3, 4]]
    for weight, value in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-6)


def test_adafactor_keeps_a_row_and_a_column_and_takes_zeros():
    """A row and a column without gradients meet in a square of 1e-60, which float32 doesn't have."""
    optimizer = optimizers.Adafactor()
    matrix, cube, _ = _built(optimizer, tf.ones([4, 5]), tf.ones([2, 3, 4]), tf.ones([3]))
    shapes = {
        slot: [None if x is None else x.shape.as_list() for x in variables]
        for slot, variables in optimizer.slots.items()
    }
    assert shapes == {"rows": [[4], [2, 3], None], "columns": [[5], [2, 4], None], "v": [None, None, [3]]}
    gradient = np.ones([4, 5], np.float32)
    gradient[1] = gradient[:, 2] = 0
    for _ in range(3):
        optimizer.step([tf.constant(gradient), tf.zeros_like(cube), tf.zeros([3])], GOOD)
    assert np.all(matrix.numpy()[gradient == 0] == 1)
    assert np.all(matrix.numpy()[gradient == 1] < 1)
    assert np.all(cube == 1.0)


@pytest.mark.parametrize("relative", [True, False])
def test_adafactors_steps_fall_with_the_root_of_their_number(relative):
    """Equal gradients: each number moves by the rate."""
    optimizer = optimizers.Adafactor(0.6, relative_step=relative, scale_parameter=False)
    (weight,) = _built(optimizer, [5.0, 5.0])
    for _ in range(4):
        optimizer.step([tf.ones([2])], GOOD)
    moved = sum([0.6, 0.6, 3**-0.5, 0.5]) if relative else 4 * 0.6
    np.testing.assert_allclose(weight, [5 - moved] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: optimizers.Adam(0.1, beta_1=1.0), ValueError, "beta_1 must be at least 0 and less than 1, but is 1.0"),
        (lambda: optimizers.RMSprop(0.1, rho=-0.1), ValueError, "rho"),
        (lambda: optimizers.RMSprop(0.1, epsilon=float("nan")), ValueError, "epsilon"),
        (lambda: optimizers.Adagrad(0.1, initial_accumulator_value=-1.0), ValueError, "initial_accumulator_value"),
        (lambda: optimizers.Lamb(0.1, weight_decay=-1.0), ValueError, "weight_decay"),
        (lambda: optimizers.Lion(0.1, beta_2=1.0), ValueError, "beta_2"),
        (lambda: optimizers.Adafactor(epsilon_1=0.0), ValueError, "epsilon_1 must be above 0"),
        (lambda: optimizers.Adafactor(clip_threshold=float("nan")), ValueError, "clip_threshold"),
        (lambda: optimizers.Adafactor(beta_2_decay=0.8), ValueError, "beta_2_decay must be at most 0, but is 0.8"),
        (lambda: optimizers.Muon(0.1, momentum=1.0), ValueError, "momentum"),
        (lambda: optimizers.Muon(0.1, adjust="spectral"), ValueError, "adjust must be .* but is 'spectral'"),
        (lambda: optimizers.Muon(0.1, others="head"), TypeError, "others must be a sequence of patterns"),
        (lambda: optimizers.Lookahead(optimizers.Adam(0.1), sync_period=0), ValueError, "sync_period"),
        (lambda: optimizers.Lookahead(optimizers.Adam(0.1), slow_step_size=1.5), ValueError, "slow_step_size"),
        (
            lambda: optimizers.Lookahead("adam"),
            TypeError,
            "Lookahead wraps an optimizer of trainers.optim",
        ),
        (lambda: optimizers.SWA(optimizers.Adam(0.1), start=0, period=1), ValueError, "start must be at least 1"),
        (lambda: optimizers.SWA(optimizers.Adam(0.1), start=1, period=0), ValueError, "period"),
        (
            lambda: optimizers.SWA(optimizers.Adam(0.1), start=1, period=1).swa_weights().__enter__(),
            RuntimeError,
            "give the optimizer to an Update first",
        ),
    ],
)
def test_bad_arguments_are_named(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_a_wrapped_optimizer_must_be_new():
    inner = optimizers.Adam(0.1)
    _built(inner, [1.0])
    with pytest.raises(ValueError, match="optimizer given to Lookahead already belongs to other weights"):
        optimizers.Lookahead(inner)


def test_what_parameter_servers_cannot_have_is_refused(monkeypatch):
    for name in ("rule", "wrapper"):
        monkeypatch.setattr(f"tftoolkit.trainers.update.optimizers.{name}.is_asynchronous", lambda: True)
    for make in (
        optimizers.Adafactor,
        lambda: optimizers.Lookahead(optimizers.Adam(0.1)),
        lambda: optimizers.SWA(optimizers.Adam(0.1), start=1, period=1),
    ):
        with pytest.raises(ValueError, match="doesn't work with parameter servers"):
            make().build([tf.Variable([1.0])])
    with pytest.raises(ValueError, match="master_weights=True overwrites what other workers"):
        optimizers.Lion(0.1, master_weights=True).build([tf.Variable([1.0])])


_TWO_REPLICAS = """
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tftoolkit import trainers
from tftoolkit.trainers import optimizers

GRADIENTS = tf.random.stateless_normal([6, 4, 3], [1, 2])


def run(make, scope, run):
    with scope:
        weight = tf.Variable(tf.random.stateless_normal([4, 3], [3, 4]))
        update = trainers.Update([weight], make())
    step = tf.function(lambda g: run(lambda g: update._apply([g]), (g,)))
    for gradient in GRADIENTS:
        step(gradient)
    values = [weight.numpy()]
    if isinstance(update.optimizer, optimizers.SWA):
        with update.optimizer.swa_weights():
            values.append(weight.numpy())
    return values


strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for make in (
    lambda: optimizers.Lookahead(optimizers.Lion(0.1), sync_period=2),
    lambda: optimizers.SWA(optimizers.Adafactor(0.1), start=2, period=2),
    lambda: optimizers.Muon(0.1),
):
    alone = run(make, tf.device("CPU:0"), lambda function, arguments: function(*arguments))
    both = run(make, strategy.scope(), strategy.run)
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.slow
def test_two_replicas_move_as_one(tmp_path):
    """Given the same gradients, each writes its own copies, and the averages are in place on both."""
    (tmp_path / "program.py").write_text(_TWO_REPLICAS)  # a file, since AutoGraph reads the sources
    subprocess.run([sys.executable, tmp_path / "program.py"], check=True)
