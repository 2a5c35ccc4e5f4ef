"""Pipeline: from a source to an ordinary tf.data.Dataset that can be resumed at any batch."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex

import tensorflow as tf

from tftoolkit.pipelines.errors import StateMismatchError, source_error
from tftoolkit.pipelines.permutation import MAX_SIZE
from tftoolkit.pipelines.plan import Plan
from tftoolkit.pipelines.sources.source import Example, Source, Spec
from tftoolkit.pipelines.stages import MapStage


class Pipeline:
    """Examples of a source, shuffled, mapped and batched, where a batch is a function of (seed, batch number) alone.

    Each stage method returns a new pipeline and leaves the old one as it is::

        p = pipelines.Pipeline(pipelines.sources.arrays({"x": x, "y": y}), seed=0).shuffle().map(fn).batch(64)
        p.dataset(start=1000)         # tf.data.Dataset, from batch 1000 on
        for batch in p: ...           # the same batches from p.position on, without end
        p.restore(saved)              # saved = p.state(): a small dict for a JSON file

    Batches are counted from 0 over all epochs; an epoch has ``batches_per_epoch`` batches and shows every example once
    (less the remainder, with ``drop_remainder``). No batch holds examples of two epochs.
    """

    def __init__(self, source: Source, *, seed: int = 0, on_error: str = "raise") -> None:
        """Starts a pipeline.

        Args:
          source: see ``pipelines.sources``.
          seed: 0 … 2**63-1; decides the order and every stage's random keys.
          on_error: what to do with an example that cannot be read. Only "raise" is available.

        Raises:
          TypeError, ValueError: not a source, an empty source, or a value out of range.
        """
        if not (hasattr(source, "fetch") and hasattr(source, "element_spec") and hasattr(source, "__len__")):
            raise TypeError(f"source: expected one of pipelines.sources, e.g. sources.arrays(…), got {source!r}")
        if not 1 <= len(source) <= MAX_SIZE:
            raise ValueError(f"source: it has {len(source)} examples; a pipeline needs at least one")
        if on_error != "raise":
            raise ValueError(f"on_error={on_error!r}: only 'raise' is available")
        self._plan = Plan(source, _integer("seed", seed, 0))
        self._position = 0

    def shuffle(self) -> "Pipeline":
        """Every epoch in another order: a seeded permutation of all examples, computed in constant memory."""
        self._before_batch("shuffle")
        if self._plan.shuffled:
            raise ValueError("shuffle: the pipeline is shuffled already")
        return self._with(shuffled=True)

    def map(self, function: Callable[..., Example]) -> "Pipeline":
        """Applies ``function(example)`` or ``function(example, key)`` to each example.

        Args:
          function: takes and returns a dict of tensors without a batch dimension; runs as TensorFlow graph. A second
            parameter gets a key, int32[2], for ``tf.random.stateless_*``: a hash of the pipeline's seed, the epoch, the
            example's index in the source, and the number of this map stage; batch size, order, position and sharding
            have no influence on it.

        Raises:
          TypeError, ValueError: not such a function, or one that draws from stateful random ops.
        """
        self._before_batch("map")
        return self._with(maps=(*self._plan.maps, MapStage.trace(function, self._plan.example_spec)))

    def batch(self, batch_size: int, drop_remainder: bool = False) -> "Pipeline":
        """Groups ``batch_size`` examples; the last batch of an epoch may be smaller unless ``drop_remainder``.

        Where every batch has the same size the data set's batch dimension is static.
        """
        self._before_batch("batch")
        size = _integer("batch_size", batch_size, 1)
        if drop_remainder and size > len(self._plan.source):
            raise ValueError(
                f"batch_size={size}: with drop_remainder=True no batch is left, as the source has only "
                f"{len(self._plan.source)} examples"
            )
        return self._with(batch_size=size, drop_remainder=bool(drop_remainder))

    def shard(self, index: int, count: int) -> "Pipeline":
        """The part of worker ``index`` of ``count``: rows index, index + count, … of every batch.

        ``batch`` gives the global batch size. All workers have the same number of batches, and batch p of all workers
        together is batch p of the unsharded pipeline, for every count; so one state serves all workers, and the number
        of workers may change at any batch. The last batch of an epoch can have fewer rows than there are workers: the
        rest of them get an empty batch, unless ``drop_remainder``.
        """
        count = _integer("count", count, 1)
        index = _integer("index", index, 0)
        if index >= count:
            raise ValueError(f"index={index}: must be below count={count}")
        if self._plan.shard_count > 1:
            raise ValueError("shard: the pipeline is sharded already")
        if not self._plan.batch_size:
            raise ValueError("shard: call .batch(global_batch_size) first")
        if count > self._plan.batch_size:
            raise ValueError(f"count={count}: more workers than rows in a batch of {self._plan.batch_size}")
        return self._with(shard_index=index, shard_count=count)

    def dataset(self, start: int = 0, epochs: int | None = None) -> tf.data.Dataset:
        """The batches as a deterministic, prefetching tf.data.Dataset of dicts.

        Args:
          start: number of the first batch, counted over all epochs; ``dataset(k)`` equals ``dataset().skip(k)`` but
            costs nothing.
          epochs: where to stop, counted from batch 0 and not from ``start``; None: never.

        Raises:
          TypeError, ValueError: a number out of range, or no batch stage yet.
          While iterating, an exception of the source comes as tf.errors.UnknownError; ``pipelines.source_error`` turns
          it back.
        """
        self._need_batch()
        start = _integer("start", start, 0)
        if epochs is None:
            numbers = tf.data.Dataset.counter(start)
        else:
            numbers = tf.data.Dataset.range(start, _integer("epochs", epochs, 0) * self.batches_per_epoch)
        batches = numbers.map(self._plan.load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return batches.prefetch(tf.data.AUTOTUNE)

    def __iter__(self) -> Iterator[Example]:
        """Endless batches from ``position`` on; ``position`` moves on as each batch is handed over.

        Raises:
          SourceError: an example could not be read; ``position`` is that of the batch that is missing.
        """
        return self._deliver(self._position)  # fixes the start now, not at the first next()

    def _deliver(self, start: int) -> Iterator[Example]:
        batches = iter(self.dataset(start))
        for following in itertools.count(start + 1):
            try:
                batch = next(batches)
            except tf.errors.OpError as error:
                raise source_error(error) or error from None
            self._position = following
            yield batch

    @property
    def seed(self) -> int:
        return self._plan.seed

    @property
    def position(self) -> int:
        """Number of the batch that iteration hands over next."""
        return self._position

    @property
    def batches_per_epoch(self) -> int:
        self._need_batch()
        return self._plan.batches_per_epoch

    @functools.cached_property
    def element_spec(self) -> Spec:
        """Shape and dtype of each feature of a batch; the batch dimension is None where its size varies."""
        return self.dataset().element_spec

    def state(self, position: int | None = None) -> dict[str, Any]:
        """Everything needed to go on from ``position`` (default: the pipeline's own), as a small JSON-able dict."""
        self._need_batch()
        position = self._position if position is None else _integer("position", position, 0)
        return {"position": position, "seed": self.seed, **self._plan.fingerprint()}

    def restore(self, state: dict[str, Any]) -> None:
        """Sets ``position`` to that of ``state``.

        Compared are seed, source, stage order, functions by name, features and batch size; not the functions' code.

        Raises:
          TypeError, ValueError: not a state.
          StateMismatchError: the state of another pipeline; names each difference.
        """
        if not isinstance(state, dict) or "position" not in state:
            raise TypeError(f"state: expected a dict that Pipeline.state() returned, got {state!r}")
        saved, own = _flatten(state), _flatten(self.state())
        position = _integer("state['position']", saved.pop("position"), 0)
        own.pop("position")
        absent = "nothing"
        differences = [
            f"{name}: saved {saved.get(name, absent)!r}, this pipeline {own.get(name, absent)!r}"
            for name in sorted(saved.keys() | own.keys())
            if saved.get(name, absent) != own.get(name, absent)
        ]
        if differences:
            raise StateMismatchError(
                "state: it was saved by another pipeline, so the rest of its stream cannot be continued here: "
                + "; ".join(differences)
            )
        self._position = position

    def _with(self, **changes: Any) -> "Pipeline":
        new = object.__new__(Pipeline)
        new._plan = dataclasses.replace(self._plan, **changes)
        new._position = 0
        return new

    def _before_batch(self, stage: str) -> None:
        if self._plan.batch_size:
            raise ValueError(f"{stage}: the examples are batched already; put .{stage}(…) before .batch(…)")

    def _need_batch(self) -> None:
        if not self._plan.batch_size:
            raise ValueError("the pipeline has no batches yet: call .batch(batch_size)")


def _integer(name: str, value: SupportsIndex, minimum: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    number = operator.index(value)
    if not minimum <= number < 1 << 63:
        raise ValueError(f"{name}={number}: must be at least {minimum} and below 2**63")
    return number


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
