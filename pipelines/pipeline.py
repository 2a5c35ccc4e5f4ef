"""Pipeline: from a source to an ordinary tf.data.Dataset that can be resumed at any batch."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines import profiling
from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.permutation import MAX_SIZE
from tftoolkit.pipelines.plan import bad_examples
from tftoolkit.pipelines.plan.batching import Batch, checked_padding
from tftoolkit.pipelines.plan.plan import Plan, in_parallel
from tftoolkit.pipelines.plan.stage import Paired, Stage
from tftoolkit.pipelines.plan.state import check_same
from tftoolkit.pipelines.profiling import Profile
from tftoolkit.pipelines.sources.rows import is_dense
from tftoolkit.pipelines.sources.source import Example, Source, Spec
from tftoolkit.pipelines.stages import caching, planning
from tftoolkit.pipelines.stages.mapping import Function, Map, PairedMap
from tftoolkit.pipelines.stages.ordering import Repeat, Shuffle, Take, Window


class Pipeline:
    """Examples of a source, shuffled, mapped and batched, where a batch is a function of (seed, batch number) alone.

    Each stage method returns a new pipeline and leaves the old one as it is::

        p = pipelines.Pipeline(pipelines.sources.arrays({"x": x, "y": y}), seed=0).shuffle().map(fn).batch(64)
        p.dataset(start=1000)         # tf.data.Dataset, from batch 1000 on
        for batch in p: ...           # the same batches from p.position on, without end
        p.restore(saved)              # saved = p.state(): a small dict for a JSON file

    Batches are counted from 0 over all epochs; an epoch has ``batches_per_epoch`` batches and shows every example once
    (less the remainder, with ``drop_remainder``). No batch holds examples of two epochs.

    ======================================= ==========================================================================
    ``filter``                              before the examples are dealt out: needs a pass over all of them
    ``shuffle``, ``take``, ``repeat``       the order
    ``map``                                 a function of one example, with random keys if it takes them
    ``window``, ``pack``                    elements made of several examples
    ``cache``                               keeps what is computed so far
    ``batch`` or ``bucket``                 then ``map`` of a ``Paired`` function, ``shard``, ``stack``, ``prefetch``
    ======================================= ==========================================================================
    """

    def __init__(self, source: Source, *, seed: int = 0, on_error: str = "raise", max_skipped: float = 0.01) -> None:
        """Starts a pipeline.

        Args:
          source: see ``pipelines.sources``.
          seed: 0 … 2**63-1; decides the order and every stage's random keys.
          on_error: what to do with an example that cannot be read, mapped or padded. "raise": SourceError names it.
            "skip": its batch comes without it (so the number of rows is not static), and ``skipped`` lists it. Stages
            that plan (``filter``, ``window``, ``pack``, ``bucket``, ``cache``) leave it out of their plan; if it
            becomes unreadable after that, the whole window that it lies in is left out.
          max_skipped: share of the source's examples, 0 … 1; more bad ones than that raise SourceError after all.

        Raises:
          TypeError, ValueError: not a source, an empty source, or a value out of range.
        """
        if not (hasattr(source, "fetch") and hasattr(source, "element_spec") and hasattr(source, "__len__")):
            raise TypeError(f"source: expected one of pipelines.sources, e.g. sources.arrays(…), got {source!r}")
        if not 1 <= len(source) <= MAX_SIZE:
            raise ValueError(f"source: it has {len(source)} examples; a pipeline needs at least one")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: must be 'raise' or 'skip'")
        if isinstance(max_skipped, bool) or not isinstance(max_skipped, int | float) or not 0 <= max_skipped <= 1:
            raise ValueError(f"max_skipped={max_skipped!r}: must be a share between 0 and 1")
        self._plan = Plan(source, integer("seed", seed, 0))
        self._skipping = bad_examples.Skipping(max_skipped, len(source)) if on_error == "skip" else None
        self._prefetch = tf.data.AUTOTUNE
        self._device: str | None = None
        self._position = 0

    def shuffle(self) -> "Pipeline":
        """Every epoch in another order: a seeded permutation of all elements, computed in constant memory.

        A mixture of sources shuffles each of them and keeps their proportions.
        """
        self._before_batch("shuffle")
        plan = self._plan
        if plan.shuffled:
            raise ValueError("shuffle: the pipeline is shuffled already")
        if hasattr(plan.source, "order"):
            if any(not isinstance(stage, Map) for stage in plan.stages):
                raise ValueError("shuffle: this source shuffles itself; put .shuffle() right after it")
            return self._with(source_shuffled=True)
        return self._then(Shuffle(plan.element_spec, plan.length, plan.seed, self._new_order()))

    def take(self, count: int) -> "Pipeline":
        """Only the first ``count`` elements of each epoch; after ``shuffle``, others in every epoch."""
        self._before_batch("take")
        count = integer("count", count, 1)
        if count > self._plan.length:
            raise ValueError(f"count={count}: there are only {self._plan.length} elements to take")
        return self._then(Take(self._plan.element_spec, count))

    def repeat(self, count: int) -> "Pipeline":
        """Makes ``count`` epochs one, so that batches may reach over their borders. Order and keys stay those of the
        single epochs."""
        self._before_batch("repeat")
        count = integer("count", count, 1)
        if self._plan.length * count > MAX_SIZE:
            raise ValueError(f"count={count}: an epoch of {count} times {self._plan.length} elements is too long")
        return self._then(Repeat(self._plan.element_spec, self._plan.length * count, count))

    def map(self, function: Callable[..., Example] | Paired) -> "Pipeline":
        """Applies ``function(example)`` or ``function(example, key)`` to each example.

        Args:
          function: takes and returns a dict of tensors without a batch dimension; runs as TensorFlow graph. A second
            parameter gets a key, int32[2], for ``tf.random.stateless_*``: a hash of the pipeline's seed, the epoch, the
            example's index in the source, and the number of this map stage; batch size, order, position and sharding
            have no influence on it. A ``Paired`` function (``image.mixup``, …) stands after ``batch``.

        Raises:
          TypeError, ValueError: not such a function, or one that draws from stateful random ops.
        """
        plan = self._plan
        functions = sum(stage.map_functions for stage in plan.stages)
        if isinstance(function, Paired):
            if not plan.batching or plan.paired or plan.stacked:
                raise ValueError(
                    f"map: {function.__name__} mixes examples of a batch: put it once, right after .batch(…)"
                )
            return self._with(paired=PairedMap.trace(function, plan.row_spec, functions + 1))
        self._before_batch("map")
        traced = Function.trace(function, plan.element_spec, functions + 1)
        last = plan.stages[-1] if plan.stages else None
        longer = last.then(traced) if isinstance(last, Map) else None
        if longer:
            return self._with(stages=(*plan.stages[:-1], longer))
        return self._then(Map.of(traced, plan.length, plan.seed))

    def filter(
        self, predicate: Callable[[Example], tf.Tensor], plan: str | os.PathLike[str] | None = None
    ) -> "Pipeline":
        """Only the examples for which ``predicate(example)`` is true.

        All examples are read once, now, to find out which they are; so the rest of the pipeline knows their number and
        can shuffle and resume as ever. It stands before ``shuffle`` and before functions that take keys.

        Args:
          predicate: takes a dict of tensors, returns a bool scalar; runs as TensorFlow graph.
          plan: file (.npz) to keep the result in; used again as long as source, stages, ``on_error`` and the
            predicate's name are the same. Delete it when you change the predicate's code.

        Raises:
          TypeError, ValueError: not such a function, or no example is left.
          SourceError: an example cannot be read, or the file cannot be written.
        """
        self._before_batch("filter")
        new = self._with()
        return new._then(planning.filtered(new._plan, predicate, plan, new._skipping))

    def window(self, size: int, shift: int | None = None) -> "Pipeline":
        """Stacks ``size`` consecutive elements into one; a window begins every ``shift`` (default: ``size``) elements.

        Windows lie within an epoch; what does not fill one at its end is left out. With ``on_error="skip"`` all
        elements are read once, now, and windows are made of those that can be read; it stands before ``shuffle`` then,
        and before functions that take keys.
        """
        self._before_batch("window")
        size = integer("size", size, 1)
        shift = size if shift is None else integer("shift", shift, 1)
        new = self._with()
        if new._skipping:
            new = new._with(stages=planning.readable(new._plan, "window", new._skipping).stages)
        plan = new._plan
        if size > plan.length:
            raise ValueError(f"size={size}: larger than an epoch, which has {plan.length} elements")
        loose = [name for name, spec in plan.element_spec.items() if not is_dense(spec)]
        if loose:
            raise ValueError(
                f"window: the elements' {', '.join(map(repr, loose))} differ in shape and cannot be stacked"
            )
        spec = {name: tf.TensorSpec([size, *s.shape], s.dtype) for name, s in plan.element_spec.items()}
        return new._then(Window(spec, (plan.length - size) // shift + 1, size, shift))

    def pack(
        self,
        size: int,
        features: str | Sequence[str] = "tokens",
        *,
        padding_values: Mapping[str, Any] | None = None,
    ) -> "Pipeline":
        """Packs sequences of different lengths into windows of ``size``, with few places left empty.

        Each window holds the features, [size, …], and int32[size] ``segment_ids`` (1, 2, … for the sequences in it, 0
        where nothing is) and ``positions`` (within each segment). Sequences longer than ``size`` are cut into pieces.
        What lies together is planned on the lengths alone (Krell et al., arXiv:2107.02027). After ``shuffle``,
        sequences of the same length change places in every epoch, and windows come in another order.

        Args:
          size: length of a window.
          features: those to pack; equally long in each example. Others are left out.
          padding_values: feature -> what its empty places hold; default 0, "" or False.

        Raises:
          TypeError, ValueError: there is no such feature, it is no sequence, or a value is out of range.
        """
        self._before_batch("pack")
        size, names = integer("size", size, 1), (features,) if isinstance(features, str) else tuple(features)
        base, order = self._absorb_shuffle("pack")
        new = self._with()
        stage = planning.packed(base, size, names, padding_values, order, new._skipping)
        return new._with(stages=(*base.stages, stage))

    def cache(self, directory: str | os.PathLike[str] | None = None) -> "Pipeline":
        """Keeps the elements as they are here, in memory or in files; they are all computed now, once.

        Stands before ``shuffle`` and before functions that take keys, and changes nothing in the stream.

        Args:
          directory: where to keep them as records with checksums, to be used again as long as source and stages are the
            same: functions by their names, so delete it when you change their code.

        Raises:
          ValueError: the elements differ from epoch to epoch.
          SourceError: an example cannot be read, the files cannot be written, or they hold something else.
        """
        self._before_batch("cache")
        planning.need_fixed(self._plan, "cache")
        new = self._with()
        new._plan = caching.cached(new._plan, directory, new._skipping)
        return new

    def batch(
        self,
        batch_size: int,
        drop_remainder: bool = False,
        *,
        padded: bool = False,
        pad_to: Mapping[str, Any] | None = None,
        padding_values: Mapping[str, Any] | None = None,
    ) -> "Pipeline":
        """Groups ``batch_size`` examples; the last batch of an epoch may be smaller unless ``drop_remainder``.

        Where every batch has the same size the data set's batch dimension is static.

        Args:
          padded: fill up examples of different shapes at their ends; without it, features whose first dimension varies
            come as RaggedTensor.
          pad_to: feature -> size or shape to fill up to; default: the largest in the batch.
          padding_values: feature -> what to fill with; default 0, "" or False.
        """
        self._before_batch("batch")
        size = integer("batch_size", batch_size, 1)
        if drop_remainder and size > self._plan.length:
            raise ValueError(
                f"batch_size={size}: with drop_remainder=True no batch is left, as there are only "
                f"{self._plan.length} examples"
            )
        padding = checked_padding(self._plan.element_spec, padded, pad_to, padding_values)
        return self._with(batching=Batch(self._plan.length, size, bool(drop_remainder), padding))

    def bucket(
        self,
        batch_size: int | Sequence[int],
        boundaries: Sequence[int],
        feature: str = "tokens",
        *,
        drop_remainder: bool = False,
        pad_to_boundary: bool = False,
        padding_values: Mapping[str, Any] | None = None,
    ) -> "Pipeline":
        """Batches of examples of similar length, padded; stands in the place of ``batch``.

        Planned on all lengths (a source that knows them is asked, else everything is read once). After ``shuffle``,
        every epoch deals the members of each bucket to its batches anew and has the batches in another order.

        Args:
          batch_size: of all buckets, or one number per bucket.
          boundaries: largest length of each bucket, ascending.
          feature: the one whose length decides.
          drop_remainder: leave out what does not fill a batch of its bucket.
          pad_to_boundary: pad to the bucket's boundary, so that there are few different shapes; else to the longest.
          padding_values: feature -> what to fill with; default 0, "" or False.

        Raises:
          TypeError, ValueError: no such feature, or an example is longer than the last boundary.
        """
        self._before_batch("bucket")
        base, order = self._absorb_shuffle("bucket")
        padding = checked_padding(base.element_spec, True, None, padding_values)
        assert padding is not None
        new = self._with()
        buckets = planning.bucketed(
            base, batch_size, boundaries, feature, drop_remainder, padding, pad_to_boundary, order, new._skipping
        )
        return new._with(stages=base.stages, batching=buckets)

    def shard(self, index: int, count: int) -> "Pipeline":
        """The part of worker ``index`` of ``count``: rows index, index + count, … of every batch.

        ``batch`` gives the global batch size. All workers have the same number of batches, and batch p of all workers
        together is batch p of the unsharded pipeline, for every count; so one state serves all workers, and the number
        of workers may change at any batch. The last batch of an epoch can have fewer rows than there are workers: the
        rest of them get an empty batch, unless ``drop_remainder``. Batches padded to the longest row are padded to the
        longest of the worker's own rows; ``pad_to`` makes them the same for all workers.
        """
        count = integer("count", count, 1)
        index = integer("index", index, 0)
        if index >= count:
            raise ValueError(f"index={index}: must be below count={count}")
        if self._plan.shard_count > 1:
            raise ValueError("shard: the pipeline is sharded already")
        if not self._plan.batching:
            raise ValueError("shard: call .batch(global_batch_size) first")
        if count > self._plan.batching.largest:
            raise ValueError(f"count={count}: more workers than rows in a batch of {self._plan.batching.largest}")
        return self._with(shard_index=index, shard_count=count)

    def stack(self, count: int) -> "Pipeline":
        """Stacks ``count`` batches, for runners that make several steps per call: features become [count, batch, …].

        From here on it is stacks that are counted: ``position``, ``dataset(start)`` and states mean stacks. A stack may
        hold batches of two epochs. With ``epochs``, the batches that do not fill the last stack are left out.
        """
        self._need_batch()
        if self._plan.stacked:
            raise ValueError("stack: the pipeline is stacked already")
        varied = [name for name, spec in self.element_spec.items() if not _has_static_shape(spec)]
        if varied and self._skipping:
            raise ValueError(
                'stack: with on_error="skip" a batch may come with fewer rows, and batches of different size cannot be '
                'stacked; use on_error="raise", or have the runner make one step per call'
            )
        if varied:
            raise ValueError(
                f"stack: batches must all have one shape, but that of {', '.join(map(repr, varied))} differs; use "
                "drop_remainder=True, and pad to a fixed size"
            )
        return self._with(stacked=integer("count", count, 1))

    def prefetch(self, buffer_size: int = tf.data.AUTOTUNE, device: str | None = None) -> "Pipeline":
        """How many batches ``dataset`` prepares in advance, and where: ``device="/GPU:0"`` has them copied there.

        Iterate over that data set itself: what tf.data is told to do with it (``take``, ``map``) is done on the CPU.
        Features that come as RaggedTensor stay on the CPU; pad or pack them.

        Raises:
          TypeError, ValueError: no number above 0, or TensorFlow has no such device.
        """
        self._need_batch()
        if buffer_size != tf.data.AUTOTUNE:
            buffer_size = integer("buffer_size", buffer_size, 1)
        if device is not None:
            known = [one.name.removeprefix("/device:") for one in tf.config.list_logical_devices()]
            if not isinstance(device, str):
                raise TypeError(f"device: expected a name such as '/GPU:0', got {device!r}")
            if device.lstrip("/").upper().removeprefix("DEVICE:") not in [name.upper() for name in known]:
                raise ValueError(f"device={device!r}: there is no such device, only {', '.join(known)}")
        new = self._with()
        new._prefetch, new._device = buffer_size, device
        return new

    def dataset(self, start: int = 0, epochs: int | None = None) -> tf.data.Dataset:
        """The batches as a deterministic, prefetching tf.data.Dataset of dicts.

        Args:
          start: number of the first batch, counted over all epochs; ``dataset(k)`` equals ``dataset().skip(k)`` but
            costs nothing.
          epochs: where to stop, counted from batch 0 and not from ``start``; None: never.

        Raises:
          TypeError, ValueError: a number out of range, or no batch stage yet.
          While iterating, an exception of the source comes as tf.errors.UnknownError; ``pipelines.source_error`` turns
          it back, and ``explain(batch number, error)`` also names the example where a map stage failed.
        """
        self._need_batch()
        start = integer("start", start, 0)
        if epochs is None:
            numbers = tf.data.Dataset.counter(start)
        else:
            end = integer("epochs", epochs, 0) * self.batches_per_epoch // max(self._plan.stacked, 1)
            numbers = tf.data.Dataset.range(start, max(start, min(end, (1 << 63) - 1)))
        if self._skipping:
            load = self._skipping.loader(self._plan)
            batches = in_parallel(numbers, load)
        else:
            batches = self._plan.batches(numbers)
        if self._device:
            batches = batches.apply(tf.data.experimental.copy_to_device(self._device))
            with tf.device(self._device):
                return batches.prefetch(self._prefetch)
        return batches.prefetch(self._prefetch)

    def distributed(self, strategy: tf.distribute.Strategy, start: int = 0) -> Any:
        """The batches from ``start`` on for all replicas of ``strategy``, as a ``tf.distribute.DistributedDataset``.

        Replica r of R gets rows r, r + R, … of every batch, so what the replicas have together is the batch of
        ``dataset``, for every R. ``position`` does not move: resume with ``start``.

        Raises:
          ValueError: the pipeline is sharded or stacked already, or batches have fewer rows than there are replicas.
        """

        def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            replicas = context.num_replicas_in_sync
            mine = replicas // context.num_input_pipelines
            first = context.input_pipeline_id * mine
            shares = [self if replicas == 1 else self.shard(first + r, replicas) for r in range(mine)]
            sets = [share.dataset(start) for share in shares]
            # A worker's replicas take the elements of its data set in turn.
            return (
                sets[0]
                if mine == 1
                else tf.data.Dataset.choose_from_datasets(
                    sets, tf.data.Dataset.range(mine).repeat(), stop_on_empty_dataset=True
                )
            )

        return strategy.distribute_datasets_from_function(of_worker)

    def loader(self) -> Any:
        """A tf.function: number of a batch (int64 scalar) -> that batch, as ``dataset`` has it.

        Raises:
          ValueError: there is no batch stage, or with ``on_error="skip"``, which needs Python code.
        """
        self._need_batch()
        if self._skipping:
            raise ValueError('loader: with on_error="skip" bad rows are left out by Python code; use on_error="raise"')
        return self._plan.load

    def __iter__(self) -> Iterator[Example]:
        """Endless batches from ``position`` on; ``position`` moves on as each batch is handed over.

        Raises:
          SourceError: an example could not be read; ``position`` is that of the batch that is missing.
        """
        return self._deliver(self._position)  # fixes the start now, not at the first next()

    def _deliver(self, start: int) -> Iterator[Example]:
        batches = iter(self.dataset(start))
        for number in itertools.count(start):
            try:
                batch = next(batches)
            except tf.errors.OpError as error:
                raise self.explain(number, error) from None
            self._position = number + 1
            yield batch

    def explain(self, number: int, error: tf.errors.OpError) -> Exception:
        """The SourceError behind ``error``, which batch ``number`` of ``dataset`` raised; else ``error`` itself.

        Where it has no name of an example in it, the batch is read again example by example.
        """
        first = number * max(self._plan.stacked, 1)
        for batch in range(first, first + max(self._plan.stacked, 1)):
            explained = bad_examples.explained(self._plan, batch, error)
            if explained is not error:
                return explained
        return error

    def profile(self, batches: int = 50) -> Profile:
        """Runs the first batches stage by stage and names the slowest: ``print(p.profile())``, ``.slowest``.

        Each stage's time is that without any parallelism; the last line tells what the data set delivers with it. What
        is done once, when the pipeline is made (``filter``, filling a ``cache``, planning), shows a bar then and is no
        part of it.
        """
        self._need_batch()
        return profiling.profile(self._plan, self.dataset(), integer("batches", batches, 1))

    @property
    def skipped(self) -> list[bad_examples.SkippedExample]:
        """With ``on_error="skip"``: what was left out so far by plans and data sets of this pipeline, each once.

        Batches prepared in advance count too. Each worker lists what its own rows have lost.
        """
        return self._skipping.skipped if self._skipping else []

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
        assert self._plan.batching is not None
        return self._plan.batching.batches_per_epoch

    @functools.cached_property
    def element_spec(self) -> Spec:
        """Shape and dtype of each feature of a batch; the batch dimension is None where its size varies."""
        return self.dataset().element_spec

    def state(self, position: int | None = None) -> dict[str, Any]:
        """Everything needed to go on from ``position`` (default: the pipeline's own), as a small JSON-able dict."""
        self._need_batch()
        position = self._position if position is None else integer("position", position, 0)
        return {"position": position, "seed": self.seed, **self._plan.fingerprint()}

    def restore(self, state: dict[str, Any]) -> None:
        """Sets ``position`` to that of ``state``.

        Compared are seed, source, stages, functions by name, features and batch size; not the functions' code.

        Raises:
          TypeError, ValueError: not a state.
          StateMismatchError: the state of another pipeline; names each difference.
        """
        if not isinstance(state, dict) or "position" not in state:
            raise TypeError(f"state: expected a dict that Pipeline.state() returned, got {state!r}")
        position = integer("state['position']", state["position"], 0)
        check_same(state, self.state())
        self._position = position

    def _then(self, stage: Stage) -> "Pipeline":
        return self._with(stages=(*self._plan.stages, stage))

    def _with(self, **changes: Any) -> "Pipeline":
        new = object.__new__(type(self))
        new._plan = dataclasses.replace(self._plan, **changes)
        new._skipping = self._skipping.copy() if self._skipping else None
        new._prefetch, new._device = self._prefetch, self._device
        new._position = 0
        return new

    def _new_order(self) -> int:
        """Number of a random stream for a stage that changes the order; map stages have 1, 2, …"""
        return caching.orders_in(self._plan.stages) << 32

    def _absorb_shuffle(self, stage: str) -> tuple[Plan, tuple[int, int] | None]:
        """The plan without its shuffle, and the random stream of the stage that shuffles in its place."""
        stages = self._plan.stages
        shuffles = [i for i, one in enumerate(stages) if isinstance(one, Shuffle)]
        if self._plan.source_shuffled:
            raise ValueError(f"{stage}: a shuffled mixture cannot be planned; put .shuffle() after .{stage}(…)")
        if not shuffles:
            return self._plan, None
        behind = stages[shuffles[0] + 1 :]
        if any(not isinstance(one, Map) for one in behind):
            raise ValueError(f"{stage}: put .shuffle() right before it, with nothing but map stages in between")
        without = (*stages[: shuffles[0]], *behind)
        return dataclasses.replace(self._plan, stages=without), (self.seed, self._new_order())

    def _before_batch(self, stage: str) -> None:
        if self._plan.batching:
            raise ValueError(f"{stage}: the examples are batched already; put .{stage}(…) before .batch(…)")

    def _need_batch(self) -> None:
        if not self._plan.batching:
            raise ValueError("the pipeline has no batches yet: call .batch(batch_size)")


def _has_static_shape(spec: Any) -> bool:
    return isinstance(spec, tf.TensorSpec) and bool(spec.shape.is_fully_defined())
