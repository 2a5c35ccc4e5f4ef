"""Pipeline: from a source to an ordinary tf.data.Dataset that can be resumed at any batch.

A long file, since it is the documentation of all stages; what they do lies in ``stages`` and ``plan``.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVarTuple

import tensorflow as tf

from tftoolkit.pipelines import profiling
from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.plan import delivery
from tftoolkit.pipelines.plan.bad_examples import SkippedExample, Skipping, explained
from tftoolkit.pipelines.plan.batches import batched, batching_of, sharded, stacked
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.stage import Paired
from tftoolkit.pipelines.plan.state import check_same, position_in
from tftoolkit.pipelines.profiling import Profile
from tftoolkit.pipelines.sources.source import Example, Source, Spec, checked_source
from tftoolkit.pipelines.stages import bucketing, caching, filtering, mapping, ordering, packing, windowing

_Settings = TypeVarTuple("_Settings")


class Pipeline:
    """Examples of a source, shuffled, mapped and batched, where a batch is a function of (seed, batch number) alone.

    Each stage method returns a new pipeline and leaves the old one as it is. It raises TypeError or ValueError itself,
    not in the middle of an epoch, where its arguments or its place in the order below cannot be::

        p = pipelines.Pipeline(pipelines.sources.arrays({"x": x, "y": y}), seed=0).shuffle().map(fn).batch(64)
        p.dataset(start=1000)         # tf.data.Dataset, from batch 1000 on
        for batch in p.epoch(): ...   # the batches from p.position to the end of its epoch
        for batch in p: ...           # the same, without end
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
        source = checked_source(source)
        self._skipping = Skipping.asked_for(on_error, max_skipped, len(source))
        self._plan = Plan(source, integer("seed", seed, 0))
        self._prefetch = delivery.Prefetch()
        self._position = 0

    def shuffle(self) -> "Pipeline":
        """Every epoch in another order: a seeded permutation of all elements, computed in constant memory.

        A mixture of sources shuffles each of them and keeps their proportions.
        """
        return self._with(ordering.shuffled(self._plan))

    def take(self, count: int) -> "Pipeline":
        """Only the first ``count`` elements of each epoch; after ``shuffle``, others in every epoch."""
        return self._with(ordering.taken(self._plan, count))

    def repeat(self, count: int) -> "Pipeline":
        """Makes ``count`` epochs one, so that batches may reach over their borders. Order and keys stay those of the
        single epochs."""
        return self._with(ordering.repeated(self._plan, count))

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
        return self._with(mapping.mapped(self._plan, function))

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
        return self._planned(filtering.filtered, predicate, plan)

    def window(self, size: int, shift: int | None = None) -> "Pipeline":
        """Stacks ``size`` consecutive elements into one; a window begins every ``shift`` (default: ``size``) elements.

        Windows lie within an epoch; what does not fill one at its end is left out. With ``on_error="skip"`` all
        elements are read once, now, and windows are made of those that can be read; it stands before ``shuffle`` then,
        and before functions that take keys.
        """
        return self._planned(windowing.windowed, size, shift)

    def pack(
        self, size: int, features: str | Sequence[str] = "tokens", *, padding_values: Mapping[str, Any] | None = None
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
        return self._planned(packing.packed, size, features, padding_values)

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
        return self._planned(caching.cached, directory)

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
        return self._with(batched(self._plan, batch_size, drop_remainder, padded, pad_to, padding_values))

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
        return self._planned(
            bucketing.bucketed, batch_size, boundaries, feature, drop_remainder, pad_to_boundary, padding_values
        )

    def shard(self, index: int, count: int) -> "Pipeline":
        """The part of worker ``index`` of ``count``: rows index, index + count, … of every batch.

        ``batch`` gives the global batch size. All workers have the same number of batches, and batch p of all workers
        together is batch p of the unsharded pipeline, for every count; so one state serves all workers, and the number
        of workers may change at any batch. The last batch of an epoch can have fewer rows than there are workers: the
        rest of them get an empty batch, unless ``drop_remainder``. Batches padded to the longest row are padded to the
        longest of the worker's own rows; ``pad_to`` makes them the same for all workers.
        """
        return self._with(sharded(self._plan, index, count))

    def stack(self, count: int) -> "Pipeline":
        """Stacks ``count`` batches, for runners that make several steps per call: features become [count, batch, …].

        From here on it is stacks that are counted: ``position``, ``dataset(start)`` and states mean stacks. A stack may
        hold batches of two epochs. With ``epochs``, the batches that do not fill the last stack are left out.
        """
        return self._with(stacked(self._plan, self._skipping, self.element_spec, count))

    def prefetch(self, buffer_size: int = tf.data.AUTOTUNE, device: str | None = None) -> "Pipeline":
        """How many batches ``dataset`` prepares in advance, and where: ``device="/GPU:0"`` has them copied there.

        Iterate over that data set itself: what tf.data is told to do with it (``take``, ``map``) is done on the CPU.
        Features that come as RaggedTensor stay on the CPU; pad or pack them.

        Raises:
          TypeError, ValueError: no number above 0, or TensorFlow has no such device.
        """
        batching_of(self._plan)
        new = self._with(self._plan)
        new._prefetch = delivery.Prefetch.checked(buffer_size, device)
        return new

    def dataset(self, start: int = 0, epochs: int | None = None) -> tf.data.Dataset:
        """The batches as a deterministic, prefetching tf.data.Dataset of dicts.

        The functions of the stages are traced once, for all data sets of equal pipelines over one source: what they
        read from Python variables is as it was then.

        Args:
          start: number of the first batch, counted over all epochs; ``dataset(k)`` equals ``dataset().skip(k)`` but
            costs nothing.
          epochs: where to stop, counted from batch 0 and not from ``start``; None: never.

        Raises:
          TypeError, ValueError: a number out of range, or no batch stage yet.

        While iterating, an exception of the source comes as tf.errors.UnknownError; ``pipelines.source_error`` turns
        it back, and ``explain(batch number, error)`` also names the example where a map stage failed.
        """
        return delivery.dataset(self._plan, self._skipping, self._prefetch, start, epochs)

    def distributed(self, strategy: tf.distribute.Strategy, start: int = 0) -> Any:
        """The batches from ``start`` on for all replicas of ``strategy``, as a ``tf.distribute.DistributedDataset``.

        Replica r of R gets rows r, r + R, … of every batch, so what the replicas have together is the batch of
        ``dataset``, for every R. ``position`` does not move: resume with ``start``.

        Raises:
          ValueError: there is no batch stage, the pipeline is sharded or stacked already, or batches have fewer rows
            than there are replicas.
        """

        def share(index: int, count: int) -> tf.data.Dataset:
            return (self if count == 1 else self.shard(index, count)).dataset(start)

        return delivery.distributed(self._plan, strategy, share)

    def loader(self) -> Any:
        """A tf.function: number of a batch (int64 scalar) -> that batch, as ``dataset`` has it.

        Raises:
          ValueError: there is no batch stage, or with ``on_error="skip"``, which needs Python code.
        """
        return delivery.loader(self._plan, self._skipping)

    def __iter__(self) -> Iterator[Example]:
        """Endless batches from ``position`` on, over all epochs; ``position`` moves on as each batch is handed over.
        ``epoch()`` gives those of one epoch.

        Raises:
          SourceError: an example could not be read; ``position`` is that of the batch that is missing.
        """
        return self._deliver(self._position)  # fixes the start now, not at the first next()

    def epoch(self) -> Iterator[Example]:
        """The batches from ``position`` to the end of the epoch that it lies in; ``position`` moves on as each batch is
        handed over, so that the next call gives the next epoch.

        A stack that holds batches of two epochs belongs to the second of them.

        Raises:
          ValueError: there is no batch stage.
          SourceError: as in iterating over the pipeline.
        """
        stacked = max(self._plan.stacked, 1)
        return self._deliver(self._position, -(-(self._position + 1) * stacked // self.batches_per_epoch))

    def _deliver(self, start: int, epochs: int | None = None) -> Iterator[Example]:
        batches = delivery.iterate(self._plan, self._skipping, self._prefetch, start, epochs)
        for number in itertools.count(start):
            try:
                batch = next(batches, None)
            except tf.errors.OpError as error:
                raise self.explain(number, error) from None
            if batch is None:
                return
            self._position = number + 1
            yield batch

    def explain(self, number: int, error: tf.errors.OpError) -> Exception:
        """The SourceError behind ``error``, which batch ``number`` of ``dataset`` raised; else ``error`` itself.

        Where it has no name of an example in it, the batch is read again example by example.
        """
        return explained(self._plan, number, error)

    def profile(self, batches: int = 50) -> Profile:
        """Runs the first batches stage by stage and names the slowest: ``print(p.profile())``, ``.slowest``.

        Each stage's time is that without any parallelism; the last line tells what the data set delivers with it. What
        is done once, when the pipeline is made (``filter``, filling a ``cache``, planning), shows a bar then and is no
        part of it.
        """
        return profiling.profile(self._plan, self.dataset(), integer("batches", batches, 1))

    @property
    def skipped(self) -> list[SkippedExample]:
        """With ``on_error="skip"``: what was left out so far by plans and data sets of this pipeline, each once.

        Batches prepared in advance count too. Each worker lists what its own rows have lost.
        """
        return self._skipping.skipped if self._skipping else []

    @property
    def seed(self) -> int:
        """What decides the order and every stage's random keys."""
        return self._plan.seed

    @property
    def position(self) -> int:
        """Number of the batch that iteration hands over next."""
        return self._position

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has. Raises ValueError before there is a batch stage."""
        return batching_of(self._plan).batches_per_epoch

    @functools.cached_property
    def element_spec(self) -> Spec:
        """Shape and dtype of each feature of a batch; the batch dimension is None where its size varies."""
        return self.dataset().element_spec

    def state(self, position: int | None = None) -> dict[str, Any]:
        """Everything needed to go on from ``position`` (default: the pipeline's own), as a small JSON-able dict."""
        batching_of(self._plan)
        position = self._position if position is None else integer("position", position, 0)
        return {"position": position, "seed": self.seed, **self._plan.fingerprint()}

    def restore(self, state: dict[str, Any]) -> None:
        """Sets ``position`` to that of ``state``.

        Compared are seed, source, stages, functions by name, features and batch size; not the functions' code.

        Raises:
          TypeError, ValueError: not a state.
          StateMismatchError: the state of another pipeline; names each difference.
        """
        position = position_in(state)
        check_same(state, self.state())
        self._position = position

    def _planned(self, stage: Callable[[Plan, Skipping | None, *_Settings], Plan], *settings: *_Settings) -> "Pipeline":
        """A pipeline with a stage that reads examples to make its plan, and lists those that cannot be read."""
        new = self._with(self._plan)
        new._plan = stage(self._plan, new._skipping, *settings)
        return new

    def _with(self, plan: Plan) -> "Pipeline":
        """A pipeline with this plan, and with a list of its own of what it skips."""
        new = object.__new__(type(self))  # without what a pipeline has computed of itself, as its element_spec
        new._plan, new._skipping = plan, self._skipping.copy() if self._skipping else None
        new._prefetch = self._prefetch
        new._position = 0
        return new
