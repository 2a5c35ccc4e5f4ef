"""LazyAdam: used rows move as the rule says, in float64, all others keep every bit; AdamW where all are used."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops, trainers
from tftoolkit.trainers import optimizers
from tftoolkit.trainers.naming import named_variables
from tftoolkit.trainers.update import slices

SLOW, EXHAUSTIVE = pytest.mark.slow, pytest.mark.exhaustive
ROWS, DEPTH, STEPS = 12, 3, 6
RUNS = {
    "eager": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, jit_compile=True, autograph=False),
}
EACH_RUN = pytest.mark.parametrize("run", ["graph", *(pytest.param(run, marks=SLOW) for run in ("eager", "xla"))])
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
OPTIONS = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-6, "weight_decay": 0.1}


class Bags(tf.Module):
    """A table and a matrix; ids 0, 2, 4 … of the table are used, one of them twice."""

    def __init__(self, optimizer, bags=True, dtype=tf.float32, every=False, **options):
        super().__init__()
        self.model = tf.Module()
        self.model.table = self.table = tf.Variable(tf.cast(tf.random.stateless_normal([ROWS, DEPTH], [0, 1]), dtype))
        self.model.matrix = self.matrix = tf.Variable(tf.random.stateless_normal([DEPTH, 2], [0, 2]))
        self.bags, self.every = bags, every
        self.update = trainers.Update(self.model, optimizer, **options)

    def ids(self, number):
        if self.every:
            return np.concatenate([np.random.default_rng(number).permutation(ROWS), [3, 3]])
        return 2 * np.random.default_rng(number).integers(0, ROWS // 2 - 1, 5) + 2 * (number % 2)

    def loss(self, ids):
        rows = custom_ops.embedding_bag(self.table, ids[:, None]) if self.bags else tf.gather(self.table, ids)
        weights = tf.cast(tf.range(1, tf.size(ids) + 1), tf.float32)[:, None]
        return tf.reduce_sum(weights * tf.sin(tf.cast(rows, tf.float32) @ self.matrix))

    def step(self, ids, factor):
        with tf.GradientTape() as tape:
            loss = factor * self.loss(ids)
        return self.update.apply(tape.gradient(loss, self.update.weights))

    def train(self, run="eager", steps=STEPS):
        step = RUNS[run](self.step)
        return [step(tf.constant(self.ids(i)), tf.constant(1.0)) for i in range(steps)]

    def slots(self):
        """The table's."""
        place = [weight is self.table for weight in self.update.weights].index(True)
        return {name: variables[place] for name, variables in self.update.optimizer.slots.items()}

    def values(self):
        return {name: variable.numpy() for name, variable in named_variables(self).items()}


def by_hand(model, clip_norm, lazy=True):
    """The table and the matrix after STEPS, and the norms, in float64."""
    weights = [model.table.numpy().astype(np.float64), model.matrix.numpy().astype(np.float64)]
    m, v = ([np.zeros_like(w) for w in weights] for _ in range(2))
    norms, o = [], OPTIONS
    for t in range(1, STEPS + 1):
        ids = model.ids(t - 1)
        rows = weights[0][ids]
        inner = np.cos(rows @ weights[1]) * np.arange(1, len(ids) + 1)[:, None]
        gradients = [np.zeros_like(weights[0]), rows.T @ inner]
        np.add.at(gradients[0], ids, inner @ weights[1].T)
        norms.append(np.sqrt(sum(np.sum(g**2) for g in gradients)))
        for i, g in enumerate(gradients):
            here = np.unique(ids) if i == 0 and lazy else slice(None)
            g = (g * clip_norm / max(clip_norm, norms[-1]))[here]
            m[i][here] = o["beta_1"] * m[i][here] + (1 - o["beta_1"]) * g
            v[i][here] = o["beta_2"] * v[i][here] + (1 - o["beta_2"]) * g**2
            direction = (m[i][here] / (1 - o["beta_1"] ** t)) / (
                np.sqrt(v[i][here] / (1 - o["beta_2"] ** t)) + o["epsilon"]
            )
            weights[i][here] -= 0.05 * (direction + o["weight_decay"] * weights[i][here])
    return weights, norms


@EACH_RUN
@pytest.mark.parametrize(("bags", "fused"), [(True, False), (False, False), (True, True), (False, True)])
def test_used_rows_follow_the_rule_in_float64(run, bags, fused):
    model = Bags(optimizers.LazyAdam(0.05, fused=fused, **OPTIONS), bags, clip_norm=4.0)
    (table, matrix), norms = by_hand(model, 4.0)
    before = model.table.numpy()
    metrics = model.train(run)
    np.testing.assert_allclose([one["grad_norm"] for one in metrics], norms, rtol=1e-5)
    assert max(norms) > 4  # clipped
    np.testing.assert_allclose(model.matrix, matrix, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.table, table, rtol=1e-5, atol=1e-6)
    for variable, old in zip((model.table, *model.slots().values()), (before, 0, 0), strict=True):
        np.testing.assert_array_equal(variable[1::2], old[1::2] if variable is model.table else 0)
    assert not np.any(np.all(model.table[::2] == before[::2], axis=1))


@EACH_RUN
@pytest.mark.parametrize("options", [{}, {"clip_norm": 2.0}, {"clip_value": 0.5, "no_weight_decay": ("matrix",)}])
@FUSED
def test_it_is_adamw_where_all_rows_are_used(run, options, fused):
    lazy = Bags(optimizers.LazyAdam(0.05, fused=fused, **OPTIONS), every=True, **options)
    dense = Bags(optimizers.AdamW(0.05, **OPTIONS), every=True, **options)
    for one, other in zip(lazy.train(run), dense.train(run), strict=True):
        np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], rtol=1e-6)
    assert lazy.values().keys() == dense.values().keys()
    for name, value in dense.values().items():
        np.testing.assert_allclose(lazy.values()[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@FUSED
def test_a_dense_gradient_is_adamws(fused):
    """A table that is also used as a matrix."""

    def trained(kind):
        model = Bags(kind(0.05, fused=fused, **OPTIONS))
        for i in range(STEPS):
            with tf.GradientTape() as tape:
                loss = model.loss(model.ids(i)) + tf.reduce_sum(tf.sin(model.table @ model.matrix))
            gradients = tape.gradient(loss, model.update.weights)
            model.update.apply([tf.convert_to_tensor(gradient) for gradient in gradients])
        return model.values()

    lazy = trained(optimizers.LazyAdam)
    for name, value in trained(optimizers.AdamW).items():
        np.testing.assert_array_equal(lazy[name], value, err_msg=name)


@EACH_RUN
@FUSED
def test_a_skipped_step_leaves_every_bit(run, fused):
    model = Bags(optimizers.LazyAdam(0.05, fused=fused, **OPTIONS))
    model.train(run, steps=2)
    before = model.values()
    metrics = RUNS[run](model.step)(tf.constant(model.ids(2)), tf.constant(np.nan, tf.float32))
    assert metrics["skipped"].numpy() == 1
    for name, value in model.values().items():
        if "skipped" not in name:
            assert value.tobytes() == before[name].tobytes(), name


@pytest.mark.parametrize(("master_weights", "fused"), [(True, False), (False, False), (True, True)])
def test_tables_of_bfloat16(master_weights, fused):
    """Small steps are lost without a master, of used rows; unused ones keep their bits."""
    optimizer = optimizers.LazyAdam(1e-5, master_weights=master_weights, fused=fused)
    model = Bags(optimizer, dtype=tf.bfloat16)
    before = model.table.numpy().astype(np.float32)
    for _ in range(60):
        model.step(tf.constant([4, 4, 6]), tf.constant(1.0))
    if master_weights:
        master = model.slots()["master"].numpy()
        moved = np.abs(master - before)
        assert np.all(moved[[4, 6]] > 2e-4)
        assert np.all(np.delete(moved, [4, 6], 0) == 0)
    else:
        assert np.mean(model.table.numpy() == before.astype(model.table.dtype.as_numpy_dtype)) > 0.9


@FUSED
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gradients_of_a_loss_function(precision, fused):
    """The update differentiates: a mean, a loss scale."""

    def trained(kind):
        model = Bags(kind(0.05, fused=fused, **OPTIONS), every=True, precision=precision, clip_norm=1.0)

        def losses(batch, key):
            rows = custom_ops.embedding_bag(model.model.table, batch[:, None])
            return tf.reduce_sum(tf.sin(tf.cast(rows @ model.model.matrix, tf.float32)), 1)

        for i in range(STEPS):
            gradients = model.update.gradients(losses, tf.constant(model.ids(i)), tf.constant([1, 2]))
            assert any(isinstance(one, tf.IndexedSlices) for one in gradients.sums) == (kind is optimizers.LazyAdam)
            model.update.apply(gradients)
        return model.values()

    lazy, loose = trained(optimizers.LazyAdam), 1e-5 if precision == "float32" else 2e-2
    for name, value in trained(optimizers.AdamW).items():
        np.testing.assert_allclose(lazy[name], value, rtol=loose, atol=loose, err_msg=name)


@pytest.mark.parametrize(
    ("runner", "fused"),
    [
        ("graph", False),
        *(pytest.param(*one, marks=SLOW) for one in (("eager", False), ("graph", True), ("xla_chunk", True))),
        *(pytest.param(*one, marks=EXHAUSTIVE) for one in (("xla", False), ("xla_chunk", False), ("eager", True))),
    ],
)
def test_a_trainers_run_resumes_to_the_bit(example, tmp_path, runner, fused):
    def run(folder, steps):
        optimizer = optimizers.LazyAdam(1e-3, weight_decay=0.1, fused=fused)
        step = example.Classifier(example.Attention(), optimizer)
        trainers.Trainer(step, example.pipeline(), tmp_path / folder, runner=runner, checkpoint_every=4).run(steps)
        return example.values(step)

    whole = run("whole", 8)
    run("parts", 5)
    for key, value in run("parts", 8).items():
        np.testing.assert_array_equal(value, whole[key], err_msg=key)


def test_checkpoints_and_steps_are_the_same_with_and_without_fused():
    """Plain steps, fused ones from there; beside plain ones alone."""
    models = [Bags(optimizers.LazyAdam(0.05, fused=fused, **OPTIONS), clip_norm=1.0) for fused in (False, True)]
    plain, fused = models
    plain.train("graph", steps=3)
    assert fused.values().keys() == plain.values().keys()
    for name, variable in named_variables(fused).items():
        variable.assign(plain.values()[name])
    for model in models:
        model.train("graph")
    for name, value in plain.values().items():
        np.testing.assert_allclose(fused.values()[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_wrapper_adds_rows_up_as_the_optimizer_in_it_does():
    """Of fused ops and plain ones norms are the same, though an id comes twice."""
    models = [
        Bags(optimizers.Lookahead(optimizers.LazyAdam(0.05, fused=fused), sync_period=2), every=True)
        for fused in (False, True)
    ]
    plain, fused = (model.train("graph", steps=3) for model in models)
    for one, other in zip(plain, fused, strict=True):
        np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], rtol=1e-6)
    np.testing.assert_allclose(models[0].table, models[1].table, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run", ["eager", "graph"])
@pytest.mark.parametrize("bags", [True, False])
def test_fused_updates_tables_where_they_lie(run, bags):
    model = Bags(optimizers.LazyAdam(0.05, fused=True, **OPTIONS), bags)
    kept = [model.table, *model.slots().values()]
    step = RUNS[run](model.step)

    def places():
        return [np.asarray(memoryview(variable.read_value())).ctypes.data for variable in kept]

    step(tf.constant(model.ids(0)), tf.constant(1.0))
    before = places()
    for i in (1, 2):
        step(tf.constant(model.ids(i)), tf.constant(1.0))
        assert places() == before


def test_an_id_that_is_no_row_is_named_and_nothing_moves():
    model = Bags(optimizers.LazyAdam(0.05, fused=True))
    model.train("graph", steps=1)
    before = model.values()
    rows = tf.IndexedSlices(tf.ones([2, DEPTH]), tf.constant([1, ROWS]), tf.constant([ROWS, DEPTH]))
    gradients = [rows if weight is model.table else tf.zeros_like(weight) for weight in model.update.weights]
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"indices holds {ROWS} .element 1., but must hold rows"):
        model.update.apply(gradients)
    tables = [name for name in before if "table" in name]
    assert len(tables) == 3
    for name in tables:
        np.testing.assert_array_equal(model.values()[name], before[name], err_msg=name)


def test_sums_of_slices():
    given = tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0], [8.0]]), tf.constant([5, 2, 5, 5]), tf.constant([9, 1]))
    found = slices.summed(given)
    np.testing.assert_array_equal(found.indices, [2, 5, 5, 5])
    np.testing.assert_array_equal(found.values, [[2], [13], [13], [13]])
    np.testing.assert_array_equal(slices.each_once(found), [[2], [13], [0], [0]])
    empty = slices.summed(tf.IndexedSlices(tf.zeros([0, 3]), tf.zeros([0], tf.int64), tf.constant([9, 3])))
    assert empty.values.shape == [0, 3]


def test_what_makes_gradients_dense_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="accumulate=2 makes dense gradients, for which LazyAdam isn't meant"):
        Bags(optimizers.LazyAdam(0.1), accumulate=2)
    monkeypatch.setattr("tftoolkit.trainers.update.optimizers.rule.is_asynchronous", lambda: True)
    with pytest.raises(ValueError, match="LazyAdam doesn't work with parameter servers"):
        optimizers.LazyAdam(0.1).build([tf.Variable([1.0])])
