"""The order of examples: a bijection for every size, even, without pattern, and the same for ever."""

import math
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit.pipelines import keys
from tftoolkit.pipelines.permutation import _ROUNDS, MAX_SIZE, permute

U64 = np.uint64
GOLDEN_1437 = [1219, 658, 1267, 190, 275, 158, 359, 540]
GOLDEN_1E15 = [282712059333679, 528226086831872, 97017785635900, 478053005318603]
BIG_SIZES = [2**k + d for k in (16, 18, 20) for d in (-1, 0, 1)]


def numpy_mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def inverse(values: np.ndarray, size: int, state: int) -> np.ndarray:
    """The inverse permutation, written on its own in NumPy: the rounds backwards, subtracting."""
    radices = (math.isqrt(size - 1) + 1, -(-size // (math.isqrt(size - 1) + 1)))
    with np.errstate(over="ignore"):
        rounds = U64(state) + (np.arange(_ROUNDS, dtype=U64) + U64(1)) * U64(0x9E3779B97F4A7C15)
    round_keys = numpy_mix(rounds)

    def network(x: np.ndarray) -> np.ndarray:
        digits = [x % U64(radices[0]), x // U64(radices[0])]
        for number in reversed(range(_ROUNDS)):
            side = number % 2
            radix = U64(radices[side])
            hashed = (numpy_mix(digits[1 - side] + round_keys[number]) >> U64(1)) % radix
            digits[side] = (digits[side] + radix - hashed) % radix
        return digits[1] * U64(radices[0]) + digits[0]

    x = network(values.astype(U64))
    while (outside := x >= U64(size)).any():
        x[outside] = network(x[outside])
    return x.astype(np.int64)


def state(seed: int, epoch: int = 0) -> tf.Tensor:
    return keys.stream_state(seed, tf.constant(epoch, tf.int64), 0)


def order(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(tf.range(size, dtype=tf.int64), size, state(seed, epoch)).numpy()


def orders(size: int, count: int) -> np.ndarray:
    """The orders of ``count`` epochs, [count, size]."""

    @tf.function
    def many(epochs: tf.Tensor) -> tf.Tensor:
        positions = tf.range(size, dtype=tf.int64)
        return tf.map_fn(lambda e: permute(positions, size, keys.stream_state(7, e, 0)), epochs)

    return many(tf.range(count, dtype=tf.int64)).numpy()


def is_permutation(values: np.ndarray, size: int) -> bool:
    return values.min() >= 0 and values.max() < size and bool((np.bincount(values, minlength=size) == 1).all())


def chi_square_z(observed: np.ndarray, degrees: int) -> float:
    """How many standard deviations the chi-square statistic against equal counts lies above its mean."""
    expected = observed.sum() / observed.size
    return (((observed - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("sizes", [range(1, 100), range(100, 2001, 37)], ids=["small", "to 2000"])
def test_bijective_for_every_small_size(sizes: range) -> None:
    for size in sizes:
        assert is_permutation(order(size), size), size


@pytest.mark.slow
def test_bijective_for_all_sizes_to_2000() -> None:
    for size in range(1, 2001):
        assert is_permutation(order(size, seed=size), size), size


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=() if i % 4 == 0 else pytest.mark.slow) for i, size in enumerate(BIG_SIZES)]
)
def test_bijective_where_tensorflows_index_shuffle_is_not(size: int) -> None:
    assert is_permutation(order(size, seed=3), size)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, MAX_SIZE), st.integers(0, 2**63 - 1), st.data())
def test_inverse_leads_back_for_any_size(size: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)), np.int64)
    values = permute(tf.constant(positions), size, state(seed)).numpy()
    assert values.min() >= 0
    assert values.max() < size
    np.testing.assert_array_equal(inverse(values, size, int(state(seed))), positions)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5000), st.data())
def test_each_position_alone_gives_the_same(size: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, size - 1))
    assert permute(tf.constant(position, tf.int64), size, state(1)).numpy() == order(size, seed=1)[position]


@pytest.mark.parametrize(
    "size", [3, 16, pytest.param(5, marks=pytest.mark.slow), pytest.param(37, marks=pytest.mark.slow)]
)
def test_every_example_is_equally_likely_at_every_position(size: int) -> None:
    drawn = orders(size, 1500)
    counts = np.stack([np.bincount(drawn[:, position], minlength=size) for position in range(size)])
    assert chi_square_z(counts, (size - 1) ** 2) < 5


@pytest.mark.parametrize("size", [10, 64])
def test_no_serial_correlation(size: int) -> None:
    drawn = orders(size, 1500)
    for lag in (1, 2, math.isqrt(size - 1) + 1):  # the last: neighbours in the other digit
        steps = (drawn[:, lag:] - drawn[:, :-lag]) % size
        counts = np.bincount(steps.ravel(), minlength=size)
        assert counts[0] == 0
        assert chi_square_z(counts[1:], size - 2) < 5, lag


def test_large_order_looks_random() -> None:
    size = 1437
    values = order(size)
    correlation = np.corrcoef(values[1:], values[:-1])[0, 1]
    assert abs(correlation) < 4 / math.sqrt(size)
    fixed_points = (values == np.arange(size)).sum()
    assert fixed_points < 8  # Poisson with mean 1
    assert chi_square_z(np.bincount((values[:360] * 16) // size, minlength=16), 15) < 5


def test_tiny_sizes_reach_every_order() -> None:
    drawn = Counter(map(tuple, orders(4, 3000)))
    assert len(drawn) == math.factorial(4)
    assert max(drawn.values()) < 2 * min(drawn.values())


def test_epochs_and_seeds_have_different_orders() -> None:
    drawn = [order(500, seed, epoch) for seed in range(4) for epoch in range(4)]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (one == other).sum() < 10  # Poisson with mean 1


def test_the_order_never_changes_between_versions() -> None:
    """Saved states rely on it. A change here needs a new kind of state."""
    assert order(1437)[:8].tolist() == GOLDEN_1437
    assert permute(tf.range(4, dtype=tf.int64), 10**15, state(2**63 - 1, epoch=5)).numpy().tolist() == GOLDEN_1E15


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=f"size={size}"):
        permute(tf.constant([0], tf.int64), size, state(0))


def test_graph_and_eager_agree() -> None:
    in_graph = tf.function(lambda p: permute(p, 1437, state(5)))(tf.range(1437, dtype=tf.int64))
    np.testing.assert_array_equal(in_graph, order(1437, seed=5))


def test_mix_is_splitmix64() -> None:
    """First outputs of the SplitMix64 generator with seed 1234567, from the reference implementation's test vectors."""
    counters = tf.constant(1234567, tf.uint64) + tf.cast(tf.range(1, 4), tf.uint64) * tf.constant(
        0x9E3779B97F4A7C15, tf.uint64
    )
    assert keys.mix(counters).numpy().tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_int_is_even_and_rowwise() -> None:
    drawn_keys = keys.example_keys(state(3), tf.range(30000, dtype=tf.int64))
    assert len(np.unique(drawn_keys.numpy(), axis=0)) == 30000
    drawn = keys.uniform_int(drawn_keys, 2, 5).numpy()
    assert chi_square_z(np.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25), 24) < 5
    np.testing.assert_array_equal(keys.uniform_int(drawn_keys[17:18], 2, 5), drawn[17:18])
