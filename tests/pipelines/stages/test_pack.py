"""Packing: every token exactly once, nothing mixed up, few places left empty, exact under shuffle and sharding."""

import pydoc_data.topics
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit.pipelines import Pipeline, sources
from tftoolkit.pipelines.sources.source import fetch_in_python
from tftoolkit.pipelines.stages import packing
from tftoolkit.pipelines.stages.packing import plan_packing


class Sequences:
    """Sequence i has the tokens 1000·i, 1000·i + 1, …; "pairs" holds each token twice, "words" as text."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths
        self.element_spec = {
            "tokens": tf.TensorSpec([None], tf.int32),
            "pairs": tf.TensorSpec([None, 2], tf.float32),
            "words": tf.TensorSpec([None], tf.string),
            "number": tf.TensorSpec([], tf.int64),
        }

    def __len__(self) -> int:
        return len(self._lengths)

    def fetch(self, indices: tf.Tensor) -> dict[str, Any]:
        return fetch_in_python(self._read, indices, self.element_spec)

    def _read(self, rows: np.ndarray) -> list[Any]:
        tokens = [np.arange(self._lengths[row]) + 1000 * row for row in rows]
        words = [np.array([b"%d" % token for token in one], object) for one in tokens]
        return [tokens, [np.stack([one, -one], 1) for one in tokens], words, rows]

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "sequences", "length": len(self)}


LENGTHS = [3, 0, 5, 13, 7, 1, 4, 6, 2, 3, 8, 5, 1, 21, 9, 4, 3, 5, 6, 2]


def windows_of(p: Pipeline) -> dict[str, np.ndarray]:
    return epochs_of(p, 1)[0]


def epochs_of(p: Pipeline, count: int) -> list[dict[str, np.ndarray]]:
    """The windows of the first epochs, out of one data set."""
    batches = list(p.dataset(epochs=count).as_numpy_iterator())
    parts = [batches[k : k + p.batches_per_epoch] for k in range(0, len(batches), p.batches_per_epoch)]
    return [{name: np.concatenate([batch[name] for batch in part]) for name in batches[0]} for part in parts]


def segments(windows: dict[str, np.ndarray], feature: str = "tokens") -> list[list[Any]]:
    """The pieces in all windows; checks ids, positions and empty places on the way."""
    found = []
    for values, ids, positions in zip(windows[feature], windows["segment_ids"], windows["positions"], strict=True):
        count = ids.max()
        assert count > 0
        assert ids.tolist() == sorted(ids[ids > 0].tolist()) + [0] * int((ids == 0).sum())
        for number in range(1, count + 1):
            assert positions[ids == number].tolist() == list(range(int((ids == number).sum())))
            found.append(values[ids == number].tolist())
        assert not positions[ids == 0].any()
    return found


def expected_pieces(lengths: list[int], size: int) -> list[list[int]]:
    return [
        [1000 * i + k for k in range(begin, min(begin + size, length))]
        for i, length in enumerate(lengths)
        for begin in range(0, length, size)
    ]


@pytest.mark.parametrize("size", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 9, 40))])
def test_every_token_exactly_once_in_whole_pieces(size: int) -> None:
    """Sequences longer than the window (13, 21) are cut; no other is."""
    p = Pipeline(Sequences(LENGTHS), seed=2).pack(size).batch(3)
    assert p.element_spec["tokens"].shape.as_list()[1:] == [size]
    windows = windows_of(p)
    assert windows["tokens"].shape[1] == size
    assert windows["segment_ids"].dtype == windows["positions"].dtype == np.int32
    assert sorted(segments(windows)) == sorted(expected_pieces(LENGTHS, size))
    assert not windows["tokens"][windows["segment_ids"] == 0].any()


def test_shuffled_epochs_hold_the_same_pieces_beside_others() -> None:
    p = Pipeline(Sequences(LENGTHS), seed=2).shuffle().pack(9).batch(3)
    epochs = epochs_of(p, 3)
    for windows in epochs:
        assert sorted(segments(windows)) == sorted(expected_pieces(LENGTHS, 9))
    contents = [{frozenset(row[row > 0] // 1000) for row in windows["tokens"]} for windows in epochs]
    assert contents[0] != contents[1] != contents[2]  # equal lengths have changed places
    lengths = [sorted(sorted(np.bincount(row)[1:]) for row in windows["segment_ids"]) for windows in epochs]
    assert lengths[0] == lengths[1] == lengths[2]  # but the plan is one
    assert not np.array_equal(epochs[0]["tokens"], windows_of(Pipeline(Sequences(LENGTHS)).pack(9).batch(3))["tokens"])


@pytest.mark.slow
def test_several_features_are_packed_alike() -> None:
    p = Pipeline(Sequences(LENGTHS), seed=2).shuffle()
    fills = {"pairs": 0.5, "words": "-"}
    windows = windows_of(p.pack(11, ["tokens", "pairs", "words"], padding_values=fills).batch(4))
    assert windows.keys() == {"tokens", "pairs", "words", "segment_ids", "positions"}
    tokens, empty = windows["tokens"], windows["segment_ids"] == 0
    np.testing.assert_array_equal(windows["pairs"][~empty], np.stack([tokens, -tokens], -1)[~empty].astype(np.float32))
    assert windows["words"][~empty].tolist() == [b"%d" % token for token in tokens[~empty]]
    assert (windows["pairs"][empty] == 0.5).all()
    assert set(windows["words"][empty]) == {b"-"}  # there are some


@pytest.mark.slow
def test_packing_behind_other_stages() -> None:
    def doubled(example: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": tf.repeat(example["tokens"], 2)}

    p = Pipeline(Sequences(LENGTHS)).filter(lambda example: example["number"] % 2 == 0).map(doubled).shuffle()
    windows = windows_of(p.pack(50).batch(2))
    expected = [[1000 * i + k // 2 for k in range(2 * length)] for i, length in enumerate(LENGTHS) if i % 2 == 0]
    assert sorted(segments(windows)) == sorted(one for one in expected if one)


@pytest.mark.slow
def test_maps_behind_see_windows_with_keys_of_their_own() -> None:
    def keyed(example: dict[str, Any], key: tf.Tensor) -> dict[str, Any]:
        return {"key": key, "first": example["tokens"][0]}

    p = Pipeline(Sequences(LENGTHS), seed=2).shuffle().pack(9).map(keyed).batch(2)
    keys = [tuple(key) for windows in epochs_of(p, 2) for key in windows["key"].tolist()]
    assert len(set(keys)) == len(keys) > 20


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 30))
def test_plans_against_brute_force(lengths: list[int], size: int) -> None:
    if not any(lengths):
        return
    plan = plan_packing(np.array(lengths, np.int64), size)
    seen = np.zeros([len(lengths), max(lengths)], int)
    strategy = -1
    for window in range(plan.windows):
        while strategy + 1 < len(plan.window_starts) and plan.window_starts[strategy + 1] == window:
            strategy += 1
        filled = 0
        for place in range(plan.place_splits[strategy], plan.place_splits[strategy + 1]):
            length = plan.place_length[place]
            rank = plan.place_first[place] + window - plan.window_starts[strategy]
            assert 0 <= rank < plan.piece_counts[length]
            piece = plan.piece_starts[length] + rank
            sequence, offset = plan.piece_sequence[piece], plan.piece_offset[piece]
            assert length == min(size, lengths[sequence] - offset)
            seen[sequence, offset : offset + length] += 1
            filled += length
        assert 0 < filled <= size
    assert all(row[:length].tolist() == [1] * length for row, length in zip(seen, lengths, strict=True))
    assert seen.sum() == sum(lengths)
    assert plan.windows == best_fit([min(size, n - begin) for n in lengths for begin in range(0, n, size)], size)


def best_fit(pieces: list[int], size: int) -> int:
    """Number of windows if the longest piece that is left always goes where it leaves the least space."""
    spaces: list[int] = []
    for length in sorted(pieces, reverse=True):
        fitting = [free for free in spaces if free >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else size) - length)
    return len(spaces)


def corpus_lengths() -> np.ndarray:
    """CPython's own documentation, a word or a mark per token."""
    texts = pydoc_data.topics.topics.values()
    return np.array([len(tf.strings.regex_replace(text, r"(\w+|[^\w\s])", " 1 ").numpy().split()) for text in texts])


@pytest.mark.parametrize("size", [64, 256, 1024, 4096])
def test_at_least_95_percent_of_the_places_are_filled_on_real_text(size: int) -> None:
    lengths = corpus_lengths()
    assert lengths.sum() > 100_000
    plan = plan_packing(lengths, size)
    assert lengths.sum() >= 0.95 * plan.windows * size


def test_equal_lengths_share_windows() -> None:
    plan = plan_packing(np.full(1000, 100), 1024)
    assert plan.windows == 100


@pytest.mark.slow
def test_the_same_under_sharding_and_resumption() -> None:
    p = Pipeline(Sequences(LENGTHS), seed=2).shuffle().pack(9).batch(4)
    whole = list(p.dataset(epochs=3).take(9).as_numpy_iterator())
    rest = list(p.dataset(start=4, epochs=3).take(5).as_numpy_iterator())
    for one, other in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
    share = list(p.shard(1, 3).dataset(epochs=3).take(9).as_numpy_iterator())
    for one, other in zip(whole, share, strict=True):
        np.testing.assert_array_equal(one["tokens"][1::3], other["tokens"])


def test_other_lengths_are_another_pipeline() -> None:
    one, other = (Pipeline(Sequences(lengths)).pack(9).batch(4) for lengths in (LENGTHS, LENGTHS[::-1]))
    with pytest.raises(ValueError, match=r"stages.0: saved 'pack"):
        other.restore(one.state())


def ready() -> Pipeline:
    return Pipeline(Sequences(LENGTHS))


MIXTURE = {"a": (Sequences([3, 4]), 1), "b": (Sequences([5]), 1)}

BAD_CALLS = [
    (lambda: ready().pack(0), ValueError, "size=0: must be at least 1"),
    (lambda: ready().pack(2.5), TypeError, "size: expected an integer, got 2.5"),
    (lambda: ready().pack(4, "text"), ValueError, "features: there is no feature 'text', only 'tokens', 'pairs'"),
    (lambda: ready().pack(4, "number"), ValueError, r"features: 'number' has the shape \(\); pack needs"),
    (lambda: ready().pack(4, []), ValueError, "features: name at least one"),
    (lambda: ready().pack(4, padding_values={"tokens": "x"}), TypeError, r"padding_values\['tokens'\]='x': .*int32"),
    (lambda: ready().pack(4, padding_values={"tokens": [0]}), TypeError, r"padding_values\['tokens'\]=\[0\]"),
    (lambda: ready().pack(4, padding_values={"tokens": 2**31}), ValueError, "int32 holds only"),
    (lambda: ready().pack(4, padding_values={"pairs": 0.0}), ValueError, "padding_values: there is no feature 'pairs'"),
    (lambda: ready().pack(4, padding_values=7), TypeError, "padding_values: expected a dict"),
    (lambda: Pipeline(Sequences([0, 0])).pack(4), ValueError, "'tokens' is empty in every example"),
    (lambda: ready().pack(4).pack(4), ValueError, r"'tokens' has the shape \(4,\)"),
    (lambda: ready().batch(4).pack(4), ValueError, "batched already"),
    (lambda: ready().shuffle().take(3).pack(4), ValueError, r"pack: put .shuffle\(\) right before it"),
    (lambda: Pipeline(sources.mix(MIXTURE)).pack(4), ValueError, "a mixture deals out other examples in each"),
    (lambda: Pipeline(sources.mix(MIXTURE)).shuffle().pack(4), ValueError, "a shuffled mixture cannot be planned"),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD_CALLS, ids=[text for *_, text in BAD_CALLS])
def test_bad_input_is_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_features_of_different_length_are_named_with_their_example() -> None:
    def cut(example: dict[str, Any]) -> dict[str, Any]:
        return {**example, "pairs": example["pairs"][: 100 - tf.cast(example["number"], tf.int32) * 33]}

    with pytest.raises(ValueError, match=r"'tokens' and 'pairs' differ in length, first in example 3 .*\(13 and 1\)"):
        ready().map(cut).pack(4, ["tokens", "pairs"])


def test_a_plan_is_small() -> None:
    """A million sequences: what is kept per sequence is 16 bytes, whatever the number of windows."""
    lengths = np.random.default_rng(0).integers(1, 2000, 1_000_000)
    plan = plan_packing(lengths, 2048)
    per_window = sum(array.nbytes for array in plan[:6] if isinstance(array, np.ndarray))
    assert sum(array.nbytes for array in plan[6:8]) == 16 * len(lengths)
    assert per_window < 1 << 20
    assert isinstance(plan, packing.PackPlan)
