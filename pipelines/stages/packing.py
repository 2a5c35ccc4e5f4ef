"""Sequences of different lengths packed into windows of one length."""

import bisect
import collections
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.arguments import integer, known, scalars_of
from tftoolkit.pipelines.keys import fold, stream_state
from tftoolkit.pipelines.permutation import permute
from tftoolkit.pipelines.plan.bad_examples import Skipping, names
from tftoolkit.pipelines.plan.batches import need_elements
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.scan import lengths_of, need_fixed
from tftoolkit.pipelines.plan.stage import Stage, Where
from tftoolkit.pipelines.sources.rows import Rows, filling, is_ragged
from tftoolkit.pipelines.sources.source import Source, Spec
from tftoolkit.pipelines.stages.ordering import without_shuffle

SEGMENT_IDS, POSITIONS = "segment_ids", "positions"


class PackPlan(NamedTuple):
    """Which lengths lie together in a window, and which pieces of sequences have these lengths.

    A sequence longer than the window is cut into pieces: whole windows and the rest. A *strategy* is a set of lengths
    that fit into a window together, used for some number of windows; each of its places takes its pieces from those of
    that length, so the plan stays small however many windows there are.
    """

    window_starts: np.ndarray  # int64[strategies]: the first window made by each strategy
    place_splits: np.ndarray  # int64[strategies + 1]
    place_length: np.ndarray  # int64[places]
    place_first: np.ndarray  # int64[places]: rank, among the pieces of that length, of the one in its first window
    piece_starts: np.ndarray  # int64[size + 1]: the first piece of each length
    piece_counts: np.ndarray  # int64[size + 1]
    piece_sequence: np.ndarray  # int64[pieces]: sorted by length, then by sequence
    piece_offset: np.ndarray  # int64[pieces]
    windows: int


class _Places(NamedTuple):
    """The pieces that some windows hold, window after window."""

    identity: Where
    splits: tf.Tensor  # int64[n + 1]: pieces of each window
    offset: tf.Tensor  # int64[m]
    length: tf.Tensor  # int64[m]


@dataclasses.dataclass(frozen=True, eq=False)
class Pack(Stage):
    """Windows of ``size`` tokens, filled as ``plan`` says; shuffled, every epoch has other pieces of the same lengths
    beside each other, and the windows in another order."""

    features: tuple[str, ...]
    size: int
    padding_values: dict[str, Any]
    order: tuple[int, int] | None  # seed and number of the random stream; None: not shuffled
    plan: PackPlan
    first: bool  # whether it reads from the source

    @functools.cached_property
    def _tables(self) -> PackPlan:
        with tf.init_scope(), tf.device("CPU:0"):
            return PackPlan(*(tf.constant(array, tf.int64) for array in self.plan))

    def locate(self, where: Where) -> tuple[Where, _Places]:
        plan, window = self._tables, where.index
        state = stream_state(*self._stream_of(where.epoch)) if self.order else None
        if state is not None:
            window = permute(window, self.length, fold(state, tf.constant(0)))
        strategy = tf.searchsorted(plan.window_starts, window, side="right", out_type=tf.int64) - 1
        first, end = tf.gather(plan.place_splits, strategy), tf.gather(plan.place_splits, strategy + 1)
        places = tf.ragged.range(first, end)
        in_window = places.value_rowids()
        length = tf.gather(plan.place_length, places.flat_values)
        rank = tf.gather(plan.place_first, places.flat_values)
        rank += tf.gather(window - tf.gather(plan.window_starts, strategy), in_window)
        if state is not None:
            per_piece = state if state.shape.rank == 0 else tf.gather(state, in_window)
            rank = permute(rank, tf.gather(plan.piece_counts, length), fold(per_piece, length))
        piece = tf.gather(plan.piece_starts, length) + rank
        epoch = where.epoch if where.epoch.shape.rank == 0 else tf.gather(where.epoch, in_window)
        needed = Where(epoch, tf.gather(plan.piece_sequence, piece))
        return needed, _Places(where, places.row_splits, tf.gather(plan.piece_offset, piece), length)

    def _stream_of(self, epoch: tf.Tensor) -> tuple[int, tf.Tensor, int]:
        assert self.order is not None
        return self.order[0], epoch, self.order[1]

    def fetch(self, source: Source, indices: tf.Tensor, context: _Places) -> Rows:
        if hasattr(source, "fetch_slices"):
            rows: Rows = source.fetch_slices(indices, context.offset, context.length)
            return rows
        return self._sliced(source.fetch(indices), context)

    def build(self, rows: Rows, identity: Where, context: _Places) -> tuple[Rows, Where]:
        pieces = rows if self.first else self._sliced(rows, context)
        splits = tf.gather(tf.concat([[0], tf.cumsum(context.length)], 0), context.splits)
        number = tf.ragged.range(context.splits[1:] - context.splits[:-1]).flat_values
        packed = {
            name: self._window(pieces[name].values, splits, self.padding_values.get(name)) for name in self.features
        }
        packed[SEGMENT_IDS] = self._window(tf.repeat(tf.cast(number, tf.int32) + 1, context.length), splits, None)
        positions = tf.ragged.range(tf.cast(context.length, tf.int32)).flat_values
        packed[POSITIONS] = self._window(positions, splits, None)
        return packed, context.identity

    def _sliced(self, rows: Rows, context: _Places) -> Rows:
        wanted = tf.ragged.range(context.offset, context.offset + context.length)
        return {name: tf.gather(rows[name], wanted, batch_dims=1) for name in self.features}

    def _window(self, values: tf.Tensor, splits: tf.Tensor, fill: Any) -> tf.Tensor:
        ragged = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
        return ragged.to_tensor(filling(fill, values.dtype), shape=[None, self.size, *values.shape[1:]])

    @functools.cached_property
    def label(self) -> str:
        digest = hashlib.sha256(b"".join(np.asarray(a, "<i8").tobytes() for a in self.plan)).hexdigest()[:12]
        settings = f"{self.size}, {', '.join(self.features)}, filled with {self.padding_values or 0}"
        return f"{'shuffled ' if self.order else ''}pack({settings}), plan {digest}"

    @property
    def one_to_one(self) -> bool:
        return False

    @property
    def varies(self) -> bool:
        return self.order is not None


def packed(
    plan: Plan,
    skipping: Skipping | None,
    size: int,
    features: str | Sequence[str],
    padding_values: Mapping[str, Any] | None,
) -> Plan:
    """See ``Pipeline.pack``."""
    need_elements(plan, "pack")
    size, features = integer("size", size, 1), (features,) if isinstance(features, str) else tuple(features)
    plan, order = without_shuffle(plan, "pack")
    need_fixed(plan, "pack")
    packed_spec = _packed_spec(plan, features)
    fills = scalars_of("padding_values", padding_values, packed_spec)
    elements, lengths = _lengths(plan, features, skipping)
    made = plan_packing(lengths, size)
    made = made._replace(piece_sequence=elements[made.piece_sequence])
    spec = {name: tf.TensorSpec([size, *one.shape[1:]], one.dtype) for name, one in packed_spec.items()}
    spec |= {name: tf.TensorSpec([size], tf.int32) for name in (SEGMENT_IDS, POSITIONS)}
    return plan.then(Pack(spec, made.windows, features, size, fills, order, made, first=not plan.stages))


def _packed_spec(plan: Plan, features: tuple[str, ...]) -> Spec:
    if not features:
        raise ValueError("features: name at least one feature to pack")
    for name in features:
        spec = known("features", name, plan.element_spec)
        if not is_ragged(spec):
            raise ValueError(
                f"features: {name!r} has the shape {spec.shape}; pack needs one of different lengths, [None, …]"
            )
    return {name: plan.element_spec[name] for name in features}


def _lengths(plan: Plan, features: tuple[str, ...], skipping: Skipping | None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and lengths of the elements. Raises ValueError where the features of one differ in length."""
    elements, lengths = lengths_of(plan, features[0], skipping)
    for name in features[1:]:
        other = lengths_of(plan, name, skipping)[1]
        if not np.array_equal(other, lengths):
            first = int(np.flatnonzero(other != lengths)[0])
            where = names(plan, Where.one(elements[first]))
            raise ValueError(
                f"features: {features[0]!r} and {name!r} differ in length, first in {where} "
                f"({lengths[first]} and {other[first]})"
            )
    if not lengths.any():
        raise ValueError(f"features: {features[0]!r} is empty in every example")
    return elements, lengths


def plan_packing(lengths: np.ndarray, size: int) -> PackPlan:
    """Packs sequences into windows of ``size``, best fit with the longest first.

    It works on the histogram of lengths, as in Krell et al., "Efficient sequence packing without cross-contamination"
    (arXiv:2107.02027): windows with the same free space are one group, so the cost is that of ``size`` lengths, not
    that of the number of sequences.
    """
    sequence, offset, piece_length = _pieces(lengths, size)
    counts = np.bincount(piece_length, minlength=size + 1)
    strategies = _strategies(counts, size)
    window_starts, place_splits, place_length, place_first = [], [0], [], []
    used = np.zeros(size + 1, np.int64)
    windows = 0
    for places, repeats in strategies:
        window_starts.append(windows)
        windows += repeats
        for length in places:
            place_length.append(length)
            place_first.append(used[length])
            used[length] += repeats
        place_splits.append(len(place_length))
    return PackPlan(
        window_starts=np.array(window_starts, np.int64),
        place_splits=np.array(place_splits, np.int64),
        place_length=np.array(place_length, np.int64),
        place_first=np.array(place_first, np.int64),
        piece_starts=np.cumsum(counts) - counts,
        piece_counts=counts,
        piece_sequence=sequence,
        piece_offset=offset,
        windows=windows,
    )


def _pieces(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sequence, offset and length of every piece, sorted by length; empty sequences have none."""
    count = -(-lengths // size)
    sequence = np.repeat(np.arange(len(lengths), dtype=np.int64), count)
    number = np.arange(len(sequence), dtype=np.int64) - np.repeat(np.cumsum(count) - count, count)
    offset = number * size
    piece_length = np.minimum(lengths[sequence] - offset, size)
    order = np.argsort(piece_length, kind="stable")
    return sequence[order], offset[order], piece_length[order]


def _strategies(counts: np.ndarray, size: int) -> list[tuple[tuple[int, ...], int]]:
    """(lengths in a window, number of such windows), longest window content first."""
    groups: dict[int, list[tuple[tuple[int, ...], int]]] = collections.defaultdict(list)  # by free space
    spaces: list[int] = []  # the keys of groups, sorted

    def add(free: int, places: tuple[int, ...], repeats: int) -> None:
        if free not in groups:
            bisect.insort(spaces, free)
        groups[free].append((places, repeats))

    for length in range(size, 0, -1):
        left = int(counts[length])
        while left:
            at = bisect.bisect_left(spaces, length)
            free: int = spaces[at] if at < len(spaces) else size
            places, repeats = groups[free].pop() if at < len(spaces) else ((), left)
            copies = min(free // length, left)
            used = min(left // copies, repeats)
            if at < len(spaces):
                if repeats > used:
                    groups[free].append((places, repeats - used))
                if not groups[free]:
                    del groups[free], spaces[at]
            add(free - copies * length, (*places, *[length] * copies), used)
            left -= used * copies
    return [strategy for free in sorted(groups) for strategy in groups[free]]
