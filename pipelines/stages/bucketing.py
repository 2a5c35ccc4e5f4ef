"""Batches of examples of similar length."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.arguments import integer, integers, known
from tftoolkit.pipelines.keys import fold, stream_state
from tftoolkit.pipelines.permutation import permute
from tftoolkit.pipelines.plan.bad_examples import Skipping, names
from tftoolkit.pipelines.plan.batches import need_elements
from tftoolkit.pipelines.plan.batching import Padding, checked_padding
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.scan import lengths_of, need_fixed
from tftoolkit.pipelines.plan.stage import Where
from tftoolkit.pipelines.sources.continued_rows import check_rows_go_on
from tftoolkit.pipelines.stages.ordering import without_shuffle


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
    """A ``Batching`` planned on all lengths: bucket b takes lengths in (boundaries[b-1], boundaries[b]].

    Shuffled, every epoch deals the members of each bucket to its batches anew and has the batches in another order.
    Otherwise members come in the order of the examples, and a batch where its last member stands.
    """

    feature: str
    boundaries: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    drop_remainder: bool
    padding: Padding | None
    to_boundary: bool
    order: tuple[int, int] | None  # seed and number of the random stream; None: not shuffled
    members: np.ndarray  # int64: element numbers, bucket after bucket
    counts: np.ndarray  # int64[buckets]
    bucket_of: np.ndarray  # int64[batches]
    first_of: np.ndarray  # int64[batches]: rank of its first member in its bucket

    @property
    def batches_per_epoch(self) -> int:
        return len(self.bucket_of)

    @property
    def largest(self) -> int:
        return max(self.batch_sizes)

    @property
    def uniform(self) -> bool:
        return False

    @functools.cached_property
    def _tables(self) -> dict[str, tf.Tensor]:
        starts = np.cumsum([0, *self.counts[:-1]])
        arrays: dict[str, Any] = {
            "members": self.members, "counts": self.counts, "bucket_of": self.bucket_of, "first_of": self.first_of,
            "starts": starts, "batch_sizes": self.batch_sizes, "boundaries": self.boundaries,
        }  # fmt: skip
        with tf.init_scope(), tf.device("CPU:0"):
            return {name: tf.constant(array, tf.int64) for name, array in arrays.items()}

    def rows_of(self, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        number, tables = self._in_order(epoch, number), self._tables
        bucket, first = tf.gather(tables["bucket_of"], number), tf.gather(tables["first_of"], number)
        count = tf.gather(tables["counts"], bucket)
        rank = tf.range(first, tf.minimum(first + tf.gather(tables["batch_sizes"], bucket), count))
        if self.order:
            seed, stream = self.order
            rank = permute(rank, count, fold(stream_state(seed, epoch, stream), bucket + 1))
        return tf.gather(tables["members"], tf.gather(tables["starts"], bucket) + rank)

    def _in_order(self, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        if not self.order:
            return number
        seed, stream = self.order
        return permute(number, self.batches_per_epoch, fold(stream_state(seed, epoch, stream), tf.constant(0)))

    def padding_of(self, epoch: tf.Tensor, number: tf.Tensor) -> Padding | None:
        if not self.padding or not self.to_boundary:
            return self.padding
        bucket = tf.gather(self._tables["bucket_of"], self._in_order(epoch, number))
        rest = self.padding.sizes[self.feature][1:]
        return dataclasses.replace(
            self.padding,
            sizes={**self.padding.sizes, self.feature: (tf.gather(self._tables["boundaries"], bucket), *rest)},
        )

    @functools.cached_property
    def label(self) -> str:
        digest = hashlib.sha256(self.members.astype("<i8").tobytes()).hexdigest()[:12]
        parts = [f"{self.feature!r}", f"boundaries={list(self.boundaries)}", f"batch_sizes={list(self.batch_sizes)}"]
        parts += ["drop_remainder=True"] if self.drop_remainder else []
        parts += [self.padding.label] if self.padding else []
        parts += ["to its boundary"] if self.to_boundary else []
        return f"{'shuffled ' if self.order else ''}bucket({', '.join(parts)}), members {digest}"


def bucketed(
    plan: Plan,
    skipping: Skipping | None,
    batch_size: int | Sequence[int],
    boundaries: Sequence[int],
    feature: str,
    drop_remainder: bool,
    pad_to_boundary: bool,
    padding_values: Mapping[str, Any] | None,
) -> Plan:
    """See ``Pipeline.bucket``."""
    need_elements(plan, "bucket")
    check_rows_go_on(plan.source, ["bucket"])
    plan, order = without_shuffle(plan, "bucket")
    padding = checked_padding(plan.element_spec, True, None, padding_values)
    assert padding is not None
    need_fixed(plan, "bucket")
    limits, sizes = _checked_sizes(boundaries, batch_size)
    spec = known("feature", feature, plan.element_spec)
    if not spec.shape.rank or spec.shape[0] is not None:
        raise ValueError(
            f"feature={feature!r}: has the shape {spec.shape}; bucket needs one of different lengths, [None, …]"
        )
    elements, lengths = lengths_of(plan, feature, skipping)
    if len(lengths) and lengths.max() > limits[-1]:
        worst = names(plan, Where.one(elements[lengths.argmax()]))
        raise ValueError(f"boundaries: the last one is {limits[-1]}, but {worst} has the length {lengths.max()}")
    members, counts, bucket_of, first_of = assign(lengths, limits, sizes, drop_remainder)
    if not len(bucket_of):
        raise ValueError(f"batch_size={batch_size!r}: with drop_remainder=True no batch is left")
    if pad_to_boundary:
        padding = dataclasses.replace(padding, sizes={feature: (None, *spec.shape[1:])})
    buckets = Buckets(
        feature, tuple(limits), tuple(sizes), bool(drop_remainder), padding, bool(pad_to_boundary), order,
        elements[members], counts, bucket_of, first_of,
    )  # fmt: skip
    return dataclasses.replace(plan, batching=buckets)


def _checked_sizes(boundaries: Sequence[int], batch_size: int | Sequence[int]) -> tuple[list[int], list[int]]:
    """Largest length, and batch size, of each bucket."""
    limits = integers("boundaries", boundaries, 0)
    if any(a >= b for a, b in itertools.pairwise(limits)):
        raise ValueError(f"boundaries={limits}: must be ascending")
    if isinstance(batch_size, SupportsIndex):
        sizes = [integer("batch_size", batch_size, 1)] * len(limits)
    else:
        sizes = integers("batch_size", batch_size, 1)
    if len(sizes) != len(limits):
        raise ValueError(f"batch_size={sizes}: must be one number, or one for each of the {len(limits)} buckets")
    return limits, sizes


def assign(
    lengths: np.ndarray, boundaries: Sequence[int], batch_sizes: Sequence[int], drop_remainder: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``members, counts, bucket_of, first_of`` of Buckets; no length is above the last boundary."""
    bucket = np.searchsorted(np.asarray(boundaries), lengths, side="left")
    members = np.argsort(bucket, kind="stable").astype(np.int64)
    counts = np.bincount(bucket, minlength=len(boundaries)).astype(np.int64)
    starts = np.cumsum([0, *counts[:-1]])
    batches = []
    for number, (size, count) in enumerate(zip(batch_sizes, counts, strict=True)):
        end = count - count % size if drop_remainder else count
        for first in range(0, end, size):
            last = members[starts[number] + min(first + size, count) - 1]
            batches.append((last, number, first))
    batches.sort()
    table = np.array(batches, np.int64).reshape(-1, 3)
    return members, counts, table[:, 1], table[:, 2]
