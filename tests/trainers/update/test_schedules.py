"""Learning-rate schedules against their formulas."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.trainers import schedules


def _table(schedule, steps):
    return np.array([schedule(tf.constant(step, tf.int64)).numpy() for step in range(steps)])


def test_constant():
    np.testing.assert_array_equal(_table(schedules.constant(0.25), 3), np.float32([0.25] * 3))


def test_linear_rises_falls_and_stays():
    rates = _table(schedules.linear(8.0, steps=8, warmup_steps=4, end=4.0), 11)
    np.testing.assert_allclose(rates, [2, 4, 6, 8, 8, 7, 6, 5, 4, 4, 4])


def test_cosine_follows_its_formula():
    rates = _table(schedules.cosine(1.0, steps=110, warmup_steps=10, end=0.1), 120)
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 100)) for i in range(100)]
    np.testing.assert_allclose(rates[10:110], expected, rtol=1e-6)
    np.testing.assert_allclose(rates[110:], 0.1, rtol=1e-6)


def test_warmup_stable_decay():
    rates = _table(schedules.warmup_stable_decay(8.0, steps=12, warmup_steps=4, decay_steps=4, end=4.0), 14)
    np.testing.assert_allclose(rates, [2, 4, 6, 8, 8, 8, 8, 8, 8, 7, 6, 5, 4, 4])


def test_piecewise():
    rates = _table(schedules.piecewise({0: 4.0, 6: 1.0, 3: 2.0}), 8)
    np.testing.assert_array_equal(rates, [4, 4, 4, 2, 2, 2, 1, 1])


@pytest.mark.parametrize(
    ("fractions", "steps"),
    [
        (lambda: schedules.linear(1.0, 40, warmup_steps=0.25), lambda: schedules.linear(1.0, 40, warmup_steps=10)),
        (lambda: schedules.cosine(1.0, 40, warmup_steps=0.25), lambda: schedules.cosine(1.0, 40, warmup_steps=10)),
        (
            lambda: schedules.warmup_stable_decay(1.0, 40, warmup_steps=0.1, decay_steps=0.5),
            lambda: schedules.warmup_stable_decay(1.0, 40, warmup_steps=4, decay_steps=20),
        ),
        (
            lambda: schedules.piecewise({0: 1.0, 0.5: 0.1, 0.75: 0.01}, 40),
            lambda: schedules.piecewise({0: 1.0, 20: 0.1, 30: 0.01}),
        ),
    ],
)
def test_fractions_of_the_run(fractions, steps):
    np.testing.assert_array_equal(_table(fractions(), 45), _table(steps(), 45))


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.cosine(3e-3, steps=50, warmup_steps=5),
        schedules.warmup_stable_decay(3e-3, steps=50, warmup_steps=5, decay_steps=0.2),
        schedules.piecewise({0: 3e-3, 20: 1e-3}),
    ],
)
def test_the_same_inside_xla(schedule):
    compiled = tf.function(schedule, jit_compile=True)
    for step in range(60):
        number = tf.constant(step, tf.int64)
        # XLA may contract a multiplication and an addition into one rounding.
        np.testing.assert_allclose(compiled(number), schedule(number), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: schedules.constant(-1.0), "learning_rate"),
        (lambda: schedules.linear(math.inf, 10), "peak"),
        (lambda: schedules.cosine(1.0, 10, warmup_steps=10), "warmup_steps"),
        (lambda: schedules.cosine(1.0, 10, end=math.nan), "end"),
        (lambda: schedules.cosine(1.0, 10, warmup_steps=1.0), "warmup_steps as a fraction"),
        (lambda: schedules.warmup_stable_decay(1.0, 10, warmup_steps=6, decay_steps=0.5), "11 steps together"),
        (lambda: schedules.warmup_stable_decay(1.0, 10, warmup_steps=1, decay_steps=0), "decay_steps"),
        (lambda: schedules.piecewise({1: 0.1}), "begin at 0"),
        (lambda: schedules.piecewise({0: 0.1, 0.5: 0.01}), "give steps"),
        (lambda: schedules.piecewise({0: 0.1, 0.001: 0.01}, 10), "all different"),
        (lambda: schedules.piecewise({0: -0.1}), r"learning_rates\[0\]"),
    ],
)
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


class Run:
    """What ``Plateau.observe`` sees of a trainer."""

    def __init__(self, kind, value):
        self.last_metrics = {kind: {"kind": kind, "step": 1, "cost": value}}


def _rates(plateau, values, kind="eval"):
    found = []
    for value in values:
        plateau.observe(Run(kind, value))
        found.append(round(float(plateau(tf.constant(0, tf.int64))), 6))
    return found


def test_t9_plateau_lowers_the_rate_after_its_patience():
    rate = schedules.Plateau(1.0, "cost", factor=0.5, patience=2)
    assert _rates(rate, [3.0, 2.0, 2.0, 2.5, 1.0, 1.5, 1.0]) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_t9_plateau_counts_numbers_that_are_not_finite_as_worse():
    rate = schedules.Plateau(1.0, "cost", factor=0.5, patience=2)
    assert _rates(rate, [None, math.nan, 2.0, math.inf, None]) == [1, 0.5, 0.5, 0.5, 0.25]


def test_t9_plateau_with_all_its_options():
    rate = schedules.Plateau(
        1.0, "cost", mode="max", factor=0.5, patience=1, min_delta=0.1, cooldown=2, lowest=0.2, kind="train"
    )
    values = [1.0, 1.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0]
    assert _rates(rate, values, "train") == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_t9_plateau_names_a_metric_that_is_not_there():
    with pytest.raises(ValueError, match=r"no eval metric 'accuracy', but \['cost'\]"):
        schedules.Plateau(1.0, "accuracy").observe(Run("eval", 1.0))


@pytest.mark.parametrize(("options", "named"), [
    ({"mode": "least"}, "mode"), ({"factor": 1.0}, "factor"), ({"patience": 0}, "patience"),
    ({"cooldown": -1}, "cooldown"),
    ({"min_delta": math.nan}, "min_delta"), ({"lowest": -1.0}, "lowest"), ({"kind": "test"}, "kind"),
])  # fmt: skip
def test_t9_bad_arguments_of_plateau_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        schedules.Plateau(0.1, "cost", **options)
