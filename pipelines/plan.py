"""What batch number p of a pipeline holds: a pure function of (seed, p), as one TensorFlow graph."""

import dataclasses
import functools
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.keys import example_keys, stream_state
from tftoolkit.pipelines.permutation import permute
from tftoolkit.pipelines.sources.source import Example, Source, Spec
from tftoolkit.pipelines.stages import MapStage, name_of

_ORDER_STREAM = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The settings of a pipeline; immutable, without a position."""

    source: Source
    seed: int
    shuffled: bool = False
    maps: tuple[MapStage, ...] = ()
    batch_size: int = 0  # 0: not batched yet
    drop_remainder: bool = False
    shard_index: int = 0
    shard_count: int = 1

    @property
    def example_spec(self) -> Spec:
        return self.maps[-1].element_spec if self.maps else self.source.element_spec

    @property
    def batches_per_epoch(self) -> int:
        full, rest = divmod(len(self.source), self.batch_size)
        return full + (1 if rest and not self.drop_remainder else 0)

    @functools.cached_property
    def load(self) -> Any:
        """tf.function: batch number, int64 scalar, counted over all epochs -> the batch."""
        return tf.function(self._load, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)

    def _load(self, number: tf.Tensor) -> Example:
        epoch = number // self.batches_per_epoch
        indices = self._indices(epoch, first=(number % self.batches_per_epoch) * self.batch_size)
        batch = self.source.fetch(indices)
        for stream, stage in enumerate(self.maps, start=_ORDER_STREAM + 1):
            keys = example_keys(stream_state(self.seed, epoch, stream), indices) if stage.keyed else None
            batch = stage.apply(batch, keys)
        rows = indices.shape[:1]
        return {name: tf.ensure_shape(batch[name], rows + spec.shape) for name, spec in self.example_spec.items()}

    def _indices(self, epoch: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Source indices, int64, of this worker's rows of the batch that starts at ``first`` in its epoch."""
        size = len(self.source)
        if self.drop_remainder or size % self.batch_size == 0:
            offsets = tf.range(self.shard_index, self.batch_size, self.shard_count, dtype=tf.int64)
        else:
            rows = tf.minimum(size - first, self.batch_size)
            offsets = tf.range(self.shard_index, tf.maximum(rows, self.shard_index), self.shard_count, dtype=tf.int64)
        positions = first + offsets
        if not self.shuffled:
            return positions
        return permute(positions, size, stream_state(self.seed, epoch, _ORDER_STREAM))

    def fingerprint(self) -> dict[str, Any]:
        """What decides the stream, apart from the seed. The shard is no part of it: all workers share one state."""
        return {
            "source": self.source.fingerprint(),
            "shuffle": self.shuffled,
            "maps": [name_of(stage.function) for stage in self.maps],
            "features": {name: f"{spec.dtype.name}{spec.shape}" for name, spec in sorted(self.example_spec.items())},
            "batch_size": self.batch_size,
            "drop_remainder": self.drop_remainder,
        }
