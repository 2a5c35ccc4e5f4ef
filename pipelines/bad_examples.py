"""Which example is to blame when a batch cannot be loaded."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError, message_of, source_error
from tftoolkit.pipelines.plan import Plan
from tftoolkit.pipelines.rows import Rows
from tftoolkit.pipelines.stages import Where


def failed_elements(plan: Plan, where: Where) -> dict[int, SourceError]:
    """Those of the elements ``where`` (by their place there) that cannot be loaded, with the reason."""
    load = tf.function(
        lambda epoch, index: plan.load_elements(Where(epoch, index))[0],
        input_signature=[tf.TensorSpec(None if where.epoch.shape.rank else [], tf.int64), tf.TensorSpec([1], tf.int64)],
        autograph=False,
    )
    failed = {}
    for place in range(int(tf.size(where.index))):
        one = Where(
            where.epoch if where.epoch.shape.rank == 0 else where.epoch[place : place + 1],
            where.index[place : place + 1],
        )
        try:
            load(*one)
        except (tf.errors.OpError, SourceError) as error:
            failed[place] = _named(plan, one, error)
    return failed


def _named(plan: Plan, where: Where, error: Exception) -> SourceError:
    """``error``, with the names of the examples that the element is made of."""
    reason = source_error(error) if isinstance(error, tf.errors.OpError) else error
    if isinstance(reason, SourceError):
        return reason
    return SourceError(f"{', '.join(names(plan, where))}: {message_of(error)}")


def names(plan: Plan, where: Where) -> list[str]:
    """What the examples behind one element are called, each once."""
    indices = plan.locate(where)[0].index.numpy()
    return [_name(plan, int(index)) for index in dict.fromkeys(indices.tolist())]


def _name(plan: Plan, index: int) -> str:
    if hasattr(plan.source, "describe"):
        return str(plan.source.describe(index))
    return f"example {index} of {plan.source.fingerprint().get('kind', 'the source')}"


@dataclasses.dataclass(frozen=True)
class SkippedExample:
    """An element that was left out because it cannot be read."""

    examples: tuple[int, ...]
    """Numbers, in the source, of the examples that it is made of; usually one."""
    reason: str
    """What is wrong, with file, record and offset as far as the source knows them."""


class Skipping:
    """Loads batches without the examples that cannot be read, and keeps a list of those.

    A batch that fails is read again row by row. Nothing depends on what was skipped before, so what a batch holds is
    still decided by its number alone.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self.skipped: dict[tuple[int, ...], SkippedExample] = {}
        self._lock = threading.Lock()

    def copy(self) -> "Skipping":
        """For a pipeline with one more stage: what it knows already, and a list of its own from now on."""
        new = Skipping(self.max_share)
        new.skipped = dict(self.skipped)
        return new

    def loader(self, plan: Plan) -> Callable[[tf.Tensor], Rows]:
        """Like ``plan.load``, without the rows that cannot be read; runs Python code in a data set's thread."""
        spec = {name: tf.TensorSpec([None, *one.shape], one.dtype) for name, one in plan.row_spec.items()}

        def load(number: tf.Tensor) -> Rows:
            try:
                return plan.load(number)
            except (tf.errors.OpError, SourceError):
                return self._without_bad(plan, number)

        def as_graph(number: tf.Tensor) -> Rows:
            names = list(spec)
            values = tf.py_function(lambda n: [load(n)[name] for name in names], [number], list(spec.values()))
            return {name: tf.ensure_shape(value, spec[name].shape) for name, value in zip(names, values, strict=True)}

        return as_graph

    def _without_bad(self, plan: Plan, number: tf.Tensor) -> Rows:
        epoch, elements = plan.elements_of(number)
        failed = failed_elements(plan, Where(epoch, elements))
        for place, error in failed.items():
            self.add(plan, Where(epoch, elements[place : place + 1]), error)
        whole = np.arange(int(tf.size(elements)))
        neighbours = np.roll(whole, -1)
        neighbours = np.where(np.isin(neighbours, list(failed)), whole, neighbours)  # without a neighbour: itself
        mine = np.setdiff1d(whole[plan.shard_index :: plan.shard_count], list(failed))
        return plan.load_some(number, tf.constant(mine), tf.constant(neighbours[mine]))

    def add(self, plan: Plan, where: Where, error: SourceError) -> None:
        """Raises SourceError if more than ``max_share`` of the examples are bad."""
        examples = tuple(dict.fromkeys(plan.locate(where)[0].index.numpy().tolist()))
        with self._lock:
            self.skipped[examples] = SkippedExample(examples, str(error))
            count = len(self.skipped)
        if count > self.max_share * len(plan.source):
            raise SourceError(
                f"{count} of {len(plan.source)} examples cannot be read, more than max_skipped={self.max_share:g} "
                f"allows. The last one: {error}"
            )


def explained(plan: Plan, number: int, error: tf.errors.OpError) -> Any:
    """The SourceError behind ``error`` of batch ``number``: it names the example if one alone fails as well."""
    known = source_error(error)
    if known:
        return known
    epoch, elements = plan.elements_of(tf.constant(number, tf.int64))
    failed = failed_elements(plan, Where(epoch, elements))
    return next(iter(failed.values()), error)
