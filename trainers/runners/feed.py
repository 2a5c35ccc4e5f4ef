"""The batches of a pipeline, one by one or in stacks, from any position on."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.errors import source_error
from tftoolkit.trainers import faults


@dataclasses.dataclass(frozen=True)
class Portion:
    """Batches ``offset`` to ``offset + count - 1`` of a stack; or a single batch, unstacked."""

    batches: Any
    """A dict of tensors; with replicas a tuple of such dicts, the share of each."""
    offset: int
    count: int


class Feed:
    """Hands out batches in order.

    Stacks begin at multiples of ``stack`` in the pipeline's own count, wherever the feed begins, so that the same stack
    holds the same batches in every run.

    Args:
        pipeline: a :class:`tftoolkit.pipelines.Pipeline`.
        position: the pipeline's number of the first batch.
        stack: how many batches to stack; 0: single batches without a stacking dimension.
        replicas: the numbers of the replicas to feed, whose batches then come as a tuple; None: whole batches.
        replica_count: how many replicas there are everywhere.

    Attributes:
        seconds_waited: how long :meth:`take` waited for data so far.
    """

    def __init__(
        self, pipeline: Any, position: int, stack: int, replicas: Sequence[int] | None = None, replica_count: int = 1
    ) -> None:
        self._size = stack
        self._next = position
        self._offset = position % stack if stack else 0
        self._batches: Any = None
        first = position // stack if stack else position

        def dataset(part: Any) -> tf.data.Dataset:
            return (part.stack(stack) if stack else part).dataset(first)

        if replicas is None:
            self._iterator: Iterator[Any] = iter(dataset(pipeline))
        else:
            shares = [dataset(pipeline.shard(replica, replica_count)) for replica in replicas]
            self._iterator = iter(tf.data.Dataset.zip(tuple(shares)))
        self.seconds_waited = 0.0

    def take(self, limit: int) -> Portion:
        """Up to ``limit`` batches that lie in one stack.

        Raises:
            ValueError: the data has ended.
            SourceError: an example can't be read.
        """
        if not self._size:
            batch = self._fetch()
            self._next += 1
            return Portion(batch, 0, 1)
        if self._batches is None:
            self._batches = self._fetch()
        count = min(limit, self._size - self._offset)
        portion = Portion(self._batches, self._offset, count)
        self._next += count
        self._offset = (self._offset + count) % self._size
        if self._offset == 0:
            self._batches = None  # the next stack is asked for when it is needed, not before
        return portion

    def _fetch(self) -> Any:
        faults.passing("data")
        begin = time.perf_counter()
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(f"the pipeline ended before its batch {self._next}, but training goes on") from None
        except tf.errors.OpError as error:
            raise source_error(error) or error from error
        finally:
            self.seconds_waited += time.perf_counter() - begin
