"""Several replicas and several workers end as one process does, whatever happens to them."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers.distribution.replicas import Workers, strategy_of


@pytest.fixture(scope="module")
def trainings(trainings_of):
    with trainings_of(Path(__file__).with_name("distributed.py")) as server:
        yield server


@pytest.fixture(scope="module")
def expected(trainings):
    """One process that accumulates two micro-batches."""
    assert trainings.run("expected", accumulate=2) == [0]
    return "expected"


def test_one_replica_ends_as_no_strategy_does(example, tmp_path):
    """Bit for bit. It takes the way of many through the Trainer; two devices need a process of their own."""
    found = {}
    for name, strategy in (("plain", None), ("mirrored", tf.distribute.MirroredStrategy(["CPU:0"]))):
        with strategy.scope() if strategy else contextlib.nullcontext():
            step = example.Classifier(example.Mlp())
        options = {"runner": "graph", "checkpoint_every": 3, "log_every": 3}
        for steps in (6, 9) if strategy else (9,):
            trainers.Trainer(step, example.pipeline(), tmp_path / name, **options).run(steps)
        found[name] = example.values(step), (tmp_path / name / "metrics.jsonl").read_bytes()
    (plain, log), (mirrored, other_log) = found.values()
    assert plain.keys() == mirrored.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(mirrored[name], value, err_msg=name)
    assert other_log == log


@pytest.mark.slow
def test_two_replicas_equal_two_micro_batches_bit_for_bit(trainings, expected):
    """Weights, moments, average, guard and all counters; and every metric. Examples weigh unequally."""
    assert trainings.run("mirrored", strategy="mirrored") == [0]
    trainings.assert_same("mirrored", expected)


@pytest.mark.slow
def test_a_tapes_own_gradients_are_refused(trainings):
    assert trainings.run("tape", strategy="mirrored", model="tape") == [1]
    assert "a strategy with 2 replicas: get the gradients from update.gradients" in trainings.error("tape")


@pytest.mark.slow
def test_two_workers_equal_two_micro_batches_bit_for_bit(trainings, expected):
    assert trainings.run("workers", strategy="workers") == [0, 0]
    trainings.assert_same("workers", expected)
    trainings.assert_same_variables("workers-1", expected)
    folder = trainings.folder / "workers"
    assert len(list((folder / "tensorboard").iterdir())) == 1  # the chief's


@pytest.mark.slow
@pytest.mark.parametrize("model", ["module", pytest.param("fused", marks=pytest.mark.exhaustive)])
def test_compiled_parts(trainings, model):
    """Workers equal replicas bit for bit, and one XLA program for everything but for rounding: a few 1e-7 per step."""
    options = {"runner": "xla_chunk", "steps": 40, "model": model}
    single, mirrored, workers = (f"xla-{model}-{strategy}" for strategy in ("none", "mirrored", "workers"))
    assert trainings.run(single, accumulate=2, **options) == [0]
    assert trainings.run(mirrored, strategy="mirrored", **options) == [0]
    assert trainings.run(workers, strategy="workers", **options) == [0, 0]
    trainings.assert_same(workers, mirrored)
    one, two = trainings.final(single), trainings.final(mirrored)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_sigterm_to_a_worker_that_is_not_the_chief_ends_both_and_nothing_is_lost(trainings, expected):
    assert trainings.run("terminated", strategy="workers", faults=(None, ("step", "terminate", 37))) == [75, 75]
    assert (trainings.folder / "terminated" / "checkpoints" / "step-00000037").is_dir()
    assert trainings.run("terminated", strategy="workers") == [0, 0]
    trainings.assert_same("terminated", expected)


@pytest.mark.exhaustive  # test_gang_training.py has kills, too
def test_after_a_kill_the_rerun_of_all_workers_ends_the_same(trainings, expected):
    survivor, killed = trainings.run("killed", strategy="workers", faults=(None, ("step", "kill", 37)))
    assert killed == -9
    assert survivor not in (0, 75)
    assert trainings.run("killed", strategy="workers") == [0, 0]
    trainings.assert_same("killed", expected)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [pytest.param("mirrored", marks=pytest.mark.exhaustive), "workers"])
def test_replicas_roll_back_together(trainings, strategy):
    """Batches 30 to 32 are NaN: back to step 25, and on with batch 33."""
    name = f"diverged-{strategy}"
    assert trainings.run("diverged", accumulate=2, bad=[30, 31, 32]) == [0]  # the second time it is finished at once
    assert trainings.run(name, strategy=strategy, bad=[30, 31, 32]) == ([0] if strategy == "mirrored" else [0, 0])
    trainings.assert_same(name, "diverged")
    assert b'"kind": "rollback"' in trainings.log(name)


@pytest.mark.slow
def test_the_loss_scale_of_float16_and_the_fused_optimizer_are_those_of_micro_batches(trainings):
    """Batch 10 is NaN, in both epochs, which halves it from 2^15 to 2^13."""
    options = {"model": "fused", "precision": "float16", "bad": [10]}
    assert trainings.run("float16", accumulate=2, **options) == [0]
    assert trainings.run("float16-mirrored", strategy="mirrored", **options) == [0]
    trainings.assert_same("float16-mirrored", "float16")
    assert trainings.final("float16-mirrored")["update/loss_scale/scale"] == 2.0**13


@pytest.mark.slow
def test_the_number_of_workers_may_change(trainings, expected):
    assert trainings.run("changed", strategy="workers", steps=25) == [0, 0]
    assert trainings.run("changed", accumulate=2, steps=45) == [0]
    assert trainings.run("changed", strategy="mirrored") == [0]
    trainings.assert_same_variables("changed", expected)


@pytest.mark.slow
def test_replicas_that_accumulate_equal_as_many_micro_batches_but_for_the_order_of_addition(trainings):
    assert trainings.run("four", accumulate=4, steps=20) == [0]
    assert trainings.run("two-by-two", strategy="mirrored", accumulate=2, steps=20) == [0]
    one, two = trainings.final("four"), trainings.final("two-by-two")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_last_batch_that_divides_unequally(trainings):
    """1797 examples in batches of 50: the last of an epoch has 47, which is 24 and 23."""
    assert trainings.run("uneven", accumulate=2, batch=50, steps=40) == [0]
    assert trainings.run("uneven-mirrored", strategy="mirrored", batch=50, steps=40) == [0]
    trainings.assert_same("uneven-mirrored", "uneven")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["keras", pytest.param("tf_keras", marks=pytest.mark.exhaustive)])
def test_keras_models_and_optimizers(trainings, model):
    """Slots included, so gradients that were summed twice would show, as Adam's weights hardly do."""
    name = f"{model}-mirrored"
    assert trainings.run(model, accumulate=2, steps=20, model=model) == [0]
    assert trainings.run(name, strategy="mirrored", steps=20, model=model) == [0], trainings.error(name)
    one, two = trainings.final(model), trainings.final(name)
    assert one.keys() == two.keys()
    for variable, value in one.items():
        np.testing.assert_allclose(two[variable], value, rtol=1e-3, atol=1e-6, err_msg=variable)


def test_variables_from_elsewhere_are_named():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        inside = tf.Variable(1.0)
    with pytest.raises(ValueError, match=r"weren't made within the strategy's scope: outside\. Make model"):
        strategy_of({"inside": inside, "outside": tf.Variable(1.0)})
    assert strategy_of({"outside": tf.Variable(1.0)}) is None


def test_no_strategy_for_one_worker_with_one_device(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 0}}')
    assert trainers.distributed_strategy(["CPU:0"]) is None
    monkeypatch.setenv("TF_CONFIG", '{"cluster": ["127.0.0.1:1"]}')
    with pytest.raises(ValueError, match="TF_CONFIG must look like"):
        trainers.distributed_strategy()


def test_one_process_agrees_with_itself():
    workers = Workers(None)
    assert (workers.count, workers.index, workers.replica_count, workers.is_chief) == (1, 0, 1, True)
    assert workers.any([True, False]) == [True, False]
    assert workers.from_chief({"a": None}) == {"a": None}
