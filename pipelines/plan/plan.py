"""What batch number p of a pipeline holds: a pure function of (seed, p), as one TensorFlow graph."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.plan.batching import Batch, Batching, Padding
from tftoolkit.pipelines.plan.stage import Mixing, Stage, Where
from tftoolkit.pipelines.plan.state import described, shortened
from tftoolkit.pipelines.sources.rows import Rows
from tftoolkit.pipelines.sources.source import Source, Spec

_NUMBER = tf.TensorSpec([], tf.int64)
_NUMBERS = tf.TensorSpec([None], tf.int64)
_ADDRESSES_AT_ONCE = 1 << 14
_BYTES_AT_ONCE = 1 << 20
_PLANS_KEPT = 16  # of one source
_OFFSETS = tf.TensorSpec([None], tf.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The settings of a pipeline; immutable, without a position."""

    source: Source
    seed: int
    stages: tuple[Stage, ...] = ()
    source_shuffled: bool = False  # by the source itself, see ``Source.order``
    batching: Batching | None = None
    paired: Mixing | None = None
    shard_index: int = 0
    shard_count: int = 1
    stacked: int = 0  # batches per element of the data set; 0: one, without a dimension for it

    @property
    def element_spec(self) -> Spec:
        """Of what is batched."""
        return self.stages[-1].element_spec if self.stages else self.source.element_spec

    @property
    def length(self) -> int:
        """Elements per epoch."""
        return self.stages[-1].length if self.stages else len(self.source)

    @property
    def shuffled(self) -> bool:
        return self.source_shuffled or any(stage.shuffles for stage in self.stages)

    @property
    def row_spec(self) -> Spec:
        """Of one row of a batch."""
        assert self.batching is not None
        if self.paired:
            return self.paired.after
        padding = self._padding
        return padding.spec(self.element_spec) if padding else self.element_spec

    @property
    def ragged(self) -> bool:
        """Whether rows of different length are not padded: they come as RaggedTensor."""
        return self._padding is None and self.paired is None

    @property
    def _padding(self) -> Padding | None:
        assert self.batching is not None
        return self.batching.padding_of(*[tf.constant(0, tf.int64)] * 2)

    def shared(self) -> "Plan":
        """The plan that all equal ones of this source share, so that its functions are traced once."""
        if not hasattr(self.source, "__dict__"):  # a source of the user's own with __slots__
            return self
        known: dict[Any, Plan] = vars(self.source).setdefault("_plans", {})
        key = (
            *(self.seed, self.source_shuffled, self.shard_index, self.shard_count, self.stacked),
            *(tuple(stage.key for stage in self.stages), _hashable(self.batching), _hashable(self.paired)),
        )
        if key not in known and len(known) >= _PLANS_KEPT:
            known.pop(next(iter(known)))
        return known.setdefault(key, self)

    def then(self, stage: Stage) -> "Plan":
        return dataclasses.replace(self, stages=(*self.stages, stage))

    def load_elements(self, where: Where) -> tuple[Rows, Where]:
        """The elements at ``where``, and what their random keys are made of."""
        where, contexts = self.locate(where)
        rows = (
            self.stages[0].fetch(self.source, where.index, contexts[0]) if contexts else self.source.fetch(where.index)
        )
        for stage, context in zip(self.stages, contexts, strict=True):
            rows, where = stage.build(rows, where, context)
        return rows, where

    def locate(self, where: Where) -> tuple[Where, list[Any]]:
        """Addresses in the source, and each stage's context."""
        contexts = []
        for stage in reversed(self.stages):
            where, context = stage.locate(where)
            contexts.append(context)
        if hasattr(self.source, "order"):
            epoch = where.epoch + tf.zeros_like(where.index)
            where = Where(*self.source.order(epoch, where.index, self.seed, self.source_shuffled))
        return where, contexts[::-1]

    @functools.cached_property
    def load(self) -> Any:
        """tf.function: number of a batch (or stack), int64 scalar, counted over all epochs -> the batch."""
        load = self._load_stack if self.stacked else self._load
        return tf.function(load, input_signature=[_NUMBER], autograph=False)

    def batches(self, numbers: tf.data.Dataset, start: int) -> tf.data.Dataset:
        """The batches (or stacks) with these numbers, ``start`` and those after it.

        Where that is possible the addresses of many batches are computed at once: an operation on a few hundred numbers
        costs little more than one on none, and a permutation is a hundred operations. Where batches are but rows taken
        from memory, the rows of many batches are taken at once, too: a call costs more than such a batch.
        """
        count = numbers.cardinality()
        if self.batches_at_once:
            assert self.batching is not None
            # Rebatched where the borders lie anyway; "drop_remainder" only tells TensorFlow that the size is static.
            batches = self.runs(numbers).rebatch(self.sizes(start), self.batching.uniform)
            return batches.apply(tf.data.experimental.assert_cardinality(count))
        if block := self.block_size:
            located = numbers.batch(block).map(self._locate_block).prefetch(1).unbatch()
            return in_parallel(located.apply(tf.data.experimental.assert_cardinality(count)), self._load_located)
        return in_parallel(numbers, self.load)

    def runs(self, numbers: tf.data.Dataset) -> tf.data.Dataset:
        """The rows of ``batches_at_once`` batches in each element, one batch after the other."""
        return in_parallel(numbers.batch(self.batches_at_once), self._load_run)

    def sizes(self, start: int) -> list[int]:
        """Rows of the batches from ``start`` on in ``runs``, until they repeat."""
        assert isinstance(self.batching, Batch)
        return self.batching.sizes(start, self.shard_index, self.shard_count)

    @property
    def block_size(self) -> int:
        """How many batches are located at once; 0 if each must be located on its own."""
        plain = isinstance(self.batching, Batch) and not self.paired and not self.stacked
        if not plain or not all(stage.one_to_one for stage in self.stages):
            return 0
        assert self.batching is not None
        return _ADDRESSES_AT_ONCE // self.batching.largest

    def locate_block(self, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Batch numbers int64[k] -> these, rows that each batch has (int64[k]), epochs and indices (int64[k, rows])."""
        assert isinstance(self.batching, Batch)
        epochs, within = self._divided(numbers)
        elements = self.batching.full_rows_of(within)[:, self.shard_index :: self.shard_count]
        rows = elements.shape[1]
        count = -(-(self.batching.count_of(within) - self.shard_index) // self.shard_count)
        where, _ = self.locate(Where(tf.repeat(epochs, rows), tf.reshape(elements, [-1])))
        epoch, index = (tf.reshape(part, [-1, rows]) for part in where)
        return numbers, tf.maximum(count, 0), epoch, index

    @functools.cached_property
    def _locate_block(self) -> Any:
        """``locate_block`` as tf.function, traced once for all data sets, like the other properties of this kind."""
        return tf.function(self.locate_block, input_signature=[_NUMBERS], autograph=False)

    @functools.cached_property
    def _load_located(self) -> Any:
        index = tf.TensorSpec([self._rows], tf.int64)
        return tf.function(self._located, input_signature=[_NUMBER, _NUMBER, index, index], autograph=False)

    @functools.cached_property
    def _load_run(self) -> Any:
        return tf.function(self._run, input_signature=[_NUMBERS], autograph=False)

    @property
    def _rows(self) -> int:
        """This worker's part of the largest batch."""
        assert self.batching is not None
        return len(range(self.shard_index, self.batching.largest, self.shard_count))

    @functools.cached_property
    def batches_at_once(self) -> int:
        """How many batches are taken from memory at once; 0 if each must be loaded on its own."""
        block, row = self.block_size, getattr(self.source, "row_bytes", None)
        untouched = all(type(stage).build is Stage.build for stage in self.stages)
        if not (block and row and untouched and isinstance(self.batching, Batch)):
            return 0
        if self.batching.padding or not self.sizes(0):
            return 0
        run = min(block, _BYTES_AT_ONCE // (row * self._rows))
        return run if run > 1 else 0

    def _run(self, numbers: tf.Tensor) -> Rows:
        """The rows of these batches, one batch after the other."""
        assert self.batching is not None
        _, counts, _, index = self.locate_block(numbers)
        if self.batching.uniform:
            return self.source.fetch(tf.reshape(index, [-1]))
        return self.source.fetch(tf.boolean_mask(index, tf.range(self._rows, dtype=tf.int64) < counts[:, tf.newaxis]))

    def _located(self, number: tf.Tensor, count: tf.Tensor, epoch: tf.Tensor, index: tf.Tensor) -> Rows:
        assert self.batching is not None
        if not self.batching.uniform:
            epoch, index = epoch[:count], index[:count]
        rows, where = self.source.fetch(index), Where(epoch, index)
        for stage in self.stages:
            rows, where = stage.build(rows, where, None)
        return self.padded(number, rows, index)

    @functools.cached_property
    def load_some(self) -> Any:
        """tf.function: batch number, int64[r] rows of the whole batch, int64[r] neighbour of each -> these rows."""
        return tf.function(self._load_some, input_signature=[_NUMBER, _OFFSETS, _OFFSETS], autograph=False)

    @functools.cached_property
    def load_one(self) -> Any:
        """tf.function: batch number, int64[1] epoch, int64[1] element -> a batch of that element alone, not mixed."""
        one = tf.TensorSpec([1], tf.int64)
        return tf.function(self._load_one, input_signature=[_NUMBER, one, one], autograph=False)

    def _load_one(self, number: tf.Tensor, epoch: tf.Tensor, element: tf.Tensor) -> Rows:
        rows, _ = self.load_elements(Where(epoch, element))
        return self.padded(number, rows, element)

    def _load(self, number: tf.Tensor) -> Rows:
        epoch, elements = self.elements_of(number)
        mine = elements[self.shard_index :: self.shard_count]
        if self.paired is None:
            rows, _ = self.load_elements(Where(epoch, mine))
            return self.padded(number, rows, mine)
        if self.shard_count > 1:
            return self._mixed(number, epoch, mine, tf.roll(elements, -1, axis=0)[self.shard_index :: self.shard_count])
        rows, identity = self.load_elements(Where(epoch, mine))
        rows = self.padded(number, rows, mine)
        neighbours = {name: tf.roll(feature, -1, axis=0) for name, feature in rows.items()}
        return self.paired.apply(rows, neighbours, identity, self.seed)

    def _load_some(self, number: tf.Tensor, offsets: tf.Tensor, neighbours: tf.Tensor) -> Rows:
        epoch, elements = self.elements_of(number)
        mine = tf.gather(elements, offsets)
        if self.paired is None:
            rows, _ = self.load_elements(Where(epoch, mine))
            return self.padded(number, rows, mine)
        return self._mixed(number, epoch, mine, tf.gather(elements, neighbours))

    def _mixed(self, number: tf.Tensor, epoch: tf.Tensor, mine: tf.Tensor, theirs: tf.Tensor) -> Rows:
        """The elements ``mine``, mixed with the elements ``theirs``, which may belong to other workers."""
        assert self.paired is not None
        elements = tf.concat([mine, theirs], 0)
        both, identity = self.load_elements(Where(epoch, elements))
        both = self.padded(number, both, elements)
        count = tf.shape(mine)[0]
        identity = Where(*(part if part.shape.rank == 0 else part[:count] for part in identity))
        rows, neighbours = (
            {name: one[part] for name, one in both.items()} for part in (slice(count), slice(count, None))
        )
        mixed = self.paired.apply(rows, neighbours, identity, self.seed)
        return {name: tf.ensure_shape(mixed[name], mine.shape[:1] + spec.shape) for name, spec in self.row_spec.items()}

    def _load_stack(self, number: tf.Tensor) -> Rows:
        """``stacked`` batches at once: fewer, larger operations than batch by batch."""
        assert self.batching is not None
        numbers = number * self.stacked + tf.range(self.stacked, dtype=tf.int64)
        if self.paired or not self.batching.uniform:
            return tf.map_fn(self._load, numbers, fn_output_signature=self._batch_signature())
        epochs, within = self._divided(numbers)
        elements = self.batching.rows_of(epochs, within)[:, self.shard_index :: self.shard_count]
        count = elements.shape[1]
        flat = tf.reshape(elements, [-1])
        rows, _ = self.load_elements(Where(tf.repeat(epochs, count), flat))
        rows = self.padded(number, rows, flat)
        return {
            name: tf.reshape(feature, [self.stacked, count, *self.row_spec[name].shape])
            for name, feature in rows.items()
        }

    def _batch_signature(self) -> Spec:
        assert self.batching is not None
        rows = len(range(self.shard_index, self.batching.largest, self.shard_count))
        return {name: tf.TensorSpec([rows, *spec.shape], spec.dtype) for name, spec in self.row_spec.items()}

    def elements_of(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Epoch and element numbers of the whole batch, for all workers."""
        assert self.batching is not None
        epoch, within = self._divided(number)
        return epoch, self.batching.rows_of(epoch, within)

    def _divided(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Epoch, and number within the epoch, of a batch."""
        assert self.batching is not None
        return number // self.batching.batches_per_epoch, number % self.batching.batches_per_epoch

    def padded(self, number: tf.Tensor, rows: Rows, elements: tf.Tensor) -> Rows:
        """Rows as tensors of one shape, with the static shape that is known; or ragged, if padding wasn't asked for."""
        assert self.batching is not None
        spec, padding = self.element_spec, self.batching.padding_of(*self._divided(number))
        if padding:
            rows, spec = padding.apply(rows, spec), padding.spec(spec)
        count = elements.shape[:1]
        return {
            name: tf.ensure_shape(rows[name], count + one.shape) if isinstance(rows[name], tf.Tensor) else rows[name]
            for name, one in spec.items()
        }

    def fingerprint(self) -> dict[str, Any]:
        """What decides the stream, apart from the seed. The shard is no part of it: all workers share one state."""
        assert self.batching is not None
        stages = [stage.label for stage in self.stages]
        if self.source_shuffled:
            stages.insert(0, "shuffle")
        return {
            "source": shortened(self.source.fingerprint()),
            "source features": shortened(described(self.source.element_spec)),
            "stages": shortened([*stages, self.batching.label, *([self.paired.label] if self.paired else [])]),
            "features": shortened(described(self.row_spec)),
        }


def _hashable(value: Any) -> Any:
    """``value``, or where it can't be hashed its identity, which nothing else has while a plan holds it."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def in_parallel(elements: tf.data.Dataset, load: Callable[..., Rows]) -> tf.data.Dataset:
    """``load`` of each element, of several at a time, in order."""
    options = tf.data.Options()
    # A call makes a whole batch, so the default of 16 at once takes memory, and on two cores made the first hundred
    # batches of pictures cost a quarter more. One more than there are cores, since a batch that is ready before the one
    # that is due counts as well: with none more a core waits meanwhile.
    options.autotune.initial_parallelism = min(16, 1 + (os.cpu_count() or 1))
    return elements.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).with_options(options)
