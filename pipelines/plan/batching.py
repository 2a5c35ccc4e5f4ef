"""How elements become batches."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import tensorflow as tf

from tftoolkit.pipelines.arguments import by_feature, integer, known, scalars_of
from tftoolkit.pipelines.sources.rows import Rows, is_dense, is_ragged, pad
from tftoolkit.pipelines.sources.source import Spec

_SIZES_LISTED = 1 << 12


class Batching(Protocol):
    """Which elements each batch of an epoch holds."""

    @property
    def batches_per_epoch(self) -> int: ...

    @property
    def largest(self) -> int:
        """Number of rows of the largest batch."""

    @property
    def uniform(self) -> bool:
        """Whether every batch has ``largest`` rows."""

    def rows_of(self, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Element numbers int64[rows] of batch ``number`` (int64 scalar) of an epoch.

        If batches are uniform, ``number`` may be int64[k], which gives int64[k, rows].
        """

    def padding_of(self, epoch: tf.Tensor, number: tf.Tensor) -> "Padding | None":
        """How rows of different shapes become one tensor; None: a RaggedTensor."""

    @property
    def label(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Padding:
    """Rows are filled up at their ends with ``values`` (default 0, "" or False), to the largest or to ``sizes``."""

    sizes: Mapping[str, tuple[Any, ...]]
    """Per feature: a number, an int64 scalar tensor that differs from batch to batch, or None for the largest row."""
    values: Mapping[str, Any]

    def spec(self, before: Spec) -> Spec:
        """Of one row when padded; sizes that depend on the batch are None."""

        def static(name: str, spec: tf.TensorSpec) -> list[int | None]:
            return [size if isinstance(size, int) else None for size in self._size(name, spec)]

        return {name: tf.TensorSpec(static(name, spec), spec.dtype) for name, spec in before.items()}

    def apply(self, rows: Rows, before: Spec) -> Rows:
        return {
            name: pad(rows[name], spec, self._size(name, spec), self.values.get(name)) for name, spec in before.items()
        }

    def _size(self, name: str, spec: tf.TensorSpec) -> tuple[Any, ...]:
        return self.sizes.get(name, tuple(spec.shape))

    @property
    def label(self) -> str:
        return f"padded to {dict(self.sizes) or 'the longest'} with {dict(self.values) or 0}"


def checked_padding(
    before: Spec, padded: bool, pad_to: Mapping[str, Any] | None, padding_values: Mapping[str, Any] | None
) -> Padding | None:
    """Raises TypeError or ValueError naming the argument."""
    if not padded:
        if pad_to or padding_values:
            raise ValueError("pad_to and padding_values need padded=True")
        loose = [name for name, spec in before.items() if not (is_dense(spec) or is_ragged(spec))]
        if loose:
            raise ValueError(
                f"batch: the examples' {', '.join(map(repr, loose))} differ in shape ({before[loose[0]].shape}): bring "
                "them to one shape in a map stage (crop, resize), or pass padded=True"
            )
        return None
    sizes = {}
    for name, wanted in by_feature("pad_to", pad_to).items():
        spec = known("pad_to", name, before)
        shape = wanted if isinstance(wanted, list | tuple | tf.TensorShape) else (wanted,)
        size = tuple(None if one is None else integer(f"pad_to[{name!r}]", one, 0) for one in shape)
        if len(size) != spec.shape.rank:
            raise ValueError(f"pad_to[{name!r}]={wanted!r}: the feature has {spec.shape.rank} dimensions")
        for have, want in zip(spec.shape, size, strict=True):
            if want is None and have is not None:
                raise ValueError(f"pad_to[{name!r}]={wanted!r}: write {have} for the dimension that is {have} already")
            if have is not None and want is not None and want < have:
                raise ValueError(f"pad_to[{name!r}]={wanted!r}: smaller than the examples, which are {spec.shape}")
        sizes[name] = size
    return Padding(sizes, scalars_of("padding_values", padding_values, before))


@dataclasses.dataclass(frozen=True)
class Batch:
    """``size`` consecutive elements each; the last one of an epoch may be smaller unless ``drop_remainder``."""

    length: int
    size: int
    drop_remainder: bool
    padding: Padding | None

    @property
    def batches_per_epoch(self) -> int:
        full, rest = divmod(self.length, self.size)
        return full + (1 if rest and not self.drop_remainder else 0)

    @property
    def largest(self) -> int:
        return self.size

    @property
    def uniform(self) -> bool:
        return self.drop_remainder or self.length % self.size == 0

    def rows_of(self, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        first = number[..., tf.newaxis] * self.size
        if self.uniform:
            return first + tf.range(self.size, dtype=tf.int64)
        return first + tf.range(self.count_of(number))

    def count_of(self, number: tf.Tensor) -> tf.Tensor:
        """How many rows each of these batches of an epoch has."""
        return tf.minimum(self.length - number * self.size, self.size)

    def full_rows_of(self, number: tf.Tensor) -> tf.Tensor:
        """Element numbers int64[k, size] of k batches of an epoch; what is missing in the last one repeats its end."""
        return tf.minimum(number[:, tf.newaxis] * self.size + tf.range(self.size, dtype=tf.int64), self.length - 1)

    def sizes(self, start: int, shard_index: int, shard_count: int) -> list[int]:
        """A worker's rows in batch ``start`` and those after it, until they repeat.

        Empty if that is a long list, or if there are batches without a row for this worker.
        """
        full = len(range(shard_index, self.size, shard_count))
        if self.uniform:
            return [full]
        rest = len(range(shard_index, self.length % self.size, shard_count))
        count = self.batches_per_epoch
        if not rest or count > _SIZES_LISTED:
            return []
        return [full if (start + i) % count < count - 1 else rest for i in range(count)]

    def padding_of(self, epoch: tf.Tensor, number: tf.Tensor) -> Padding | None:
        return self.padding

    @property
    def label(self) -> str:
        padding = f", {self.padding.label}" if self.padding else ""
        return f"batch({self.size}{', drop_remainder=True' if self.drop_remainder else ''}{padding})"
