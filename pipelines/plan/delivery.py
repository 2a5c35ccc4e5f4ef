"""The batches of a plan as tf.data has them: data sets, for one process or for the replicas of a strategy."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.plan.bad_examples import Skipping
from tftoolkit.pipelines.plan.batches import batching_of
from tftoolkit.pipelines.plan.plan import Plan, in_parallel
from tftoolkit.pipelines.sources.rows import Rows


@dataclasses.dataclass(frozen=True)
class Prefetch:
    """How many batches are prepared in advance, and on which device."""

    buffer_size: int = tf.data.AUTOTUNE
    device: str | None = None

    @classmethod
    def checked(cls, buffer_size: int, device: str | None) -> "Prefetch":
        """See ``Pipeline.prefetch``."""
        if buffer_size != tf.data.AUTOTUNE:
            buffer_size = integer("buffer_size", buffer_size, 1)
        if device is not None:
            known = [one.name.removeprefix("/device:") for one in tf.config.list_logical_devices()]
            if not isinstance(device, str):
                raise TypeError(f"device: expected a name such as '/GPU:0', got {device!r}")
            if device.lstrip("/").upper().removeprefix("DEVICE:") not in [name.upper() for name in known]:
                raise ValueError(f"device={device!r}: there is no such device, only {', '.join(known)}")
        return cls(buffer_size, device)

    def apply(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        if not self.device:
            return batches.prefetch(self.buffer_size)
        batches = batches.apply(tf.data.experimental.copy_to_device(self.device))
        with tf.device(self.device):
            return batches.prefetch(self.buffer_size)


def dataset(
    plan: Plan, skipping: Skipping | None, prefetch: Prefetch, start: int, epochs: int | None
) -> tf.data.Dataset:
    """See ``Pipeline.dataset``."""
    numbers = _numbers(plan, start, epochs)
    plan = plan.shared()
    return prefetch.apply(in_parallel(numbers, skipping.loader(plan)) if skipping else plan.batches(numbers, start))


def iterate(
    plan: Plan, skipping: Skipping | None, prefetch: Prefetch, start: int, epochs: int | None
) -> Iterator[Rows]:
    """The batches of ``dataset``, for Python.

    tf.data takes 0.1 ms to hand something over to Python, longer than it takes to make a batch of small rows that lie
    in memory. So runs of such batches are handed over and taken apart here.
    """
    shared = plan.shared()
    if skipping or prefetch.device or not shared.batches_at_once:
        yield from dataset(plan, skipping, prefetch, start, epochs)
        return
    sizes = itertools.cycle(shared.sizes(start))
    for run in prefetch.apply(shared.runs(_numbers(plan, start, epochs))):
        yield from _taken_apart(run, sizes)


def _taken_apart(run: Rows, sizes: Iterator[int]) -> Iterator[Rows]:
    """The batches of a run; ``sizes`` are their numbers of rows and of those after them."""
    left, parts = next(iter(run.values())).shape[0], []
    while left:
        parts.append(next(sizes))
        left -= parts[-1]
    with tf.device("CPU:0"):  # where they are
        features = [tf.split(feature, parts) for feature in run.values()]
    for batch in zip(*features, strict=True):
        yield dict(zip(run, batch, strict=True))


def _numbers(plan: Plan, start: int, epochs: int | None) -> tf.data.Dataset:
    per_epoch = batching_of(plan).batches_per_epoch
    start = integer("start", start, 0)
    if epochs is None:
        return tf.data.Dataset.counter(start)
    end = integer("epochs", epochs, 0) * per_epoch // max(plan.stacked, 1)
    return tf.data.Dataset.range(start, max(start, min(end, (1 << 63) - 1)))


def loader(plan: Plan, skipping: Skipping | None) -> Any:
    """See ``Pipeline.loader``."""
    batching_of(plan)
    if skipping:
        raise ValueError('loader: with on_error="skip" bad rows are left out by Python code; use on_error="raise"')
    return plan.shared().load


def distributed(plan: Plan, strategy: tf.distribute.Strategy, share: Callable[[int, int], tf.data.Dataset]) -> Any:
    """A ``tf.distribute.DistributedDataset`` where replica r of R gets ``share(r, R)``, its part of the batches of
    ``plan``; see ``Pipeline.distributed``."""
    batching_of(plan)
    if plan.shard_count > 1:
        raise ValueError("distributed: the pipeline is sharded already; the strategy shares the batches out itself")
    if plan.stacked:
        raise ValueError("distributed: the pipeline is stacked, but replicas take single batches; leave .stack out")

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        replicas = context.num_replicas_in_sync
        mine = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * mine
        sets = [share(first + r, replicas) for r in range(mine)]
        if mine == 1:
            return sets[0]
        # A worker's replicas take the elements of its data set in turn.
        turns = tf.data.Dataset.range(mine).repeat()
        return tf.data.Dataset.choose_from_datasets(sets, turns, stop_on_empty_dataset=True)

    return strategy.distribute_datasets_from_function(of_worker)
