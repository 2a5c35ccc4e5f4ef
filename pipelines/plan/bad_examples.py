"""Which example is to blame when a batch cannot be loaded."""

import dataclasses
import functools
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError, message_of, source_error
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.stage import Where
from tftoolkit.pipelines.sources.rows import Rows, is_ragged


def failed_elements(plan: Plan, where: Where, load_one: Callable[..., Any]) -> dict[int, SourceError]:
    """Those of the elements ``where`` (by their place there) for which ``load_one(epoch[1], element[1])`` fails."""
    failed = {}
    for place in range(int(tf.size(where.index))):
        one = _element(where, place)
        try:
            load_one(*one)
        except (tf.errors.OpError, SourceError) as error:
            failed[place] = _named(plan, one, error)
    return failed


def _element(where: Where, place: int) -> Where:
    epoch = where.epoch if where.epoch.shape.rank == 0 else where.epoch[place]
    return Where(tf.reshape(epoch, [1]), where.index[place : place + 1])


def _named(plan: Plan, where: Where, error: Exception) -> SourceError:
    """``error``, with the names of the examples that the element is made of."""
    reason = source_error(error) if isinstance(error, tf.errors.OpError) else error
    if isinstance(reason, SourceError):
        return reason
    return SourceError(f"{names(plan, where)}: {message_of(error)}", code="source-example")


def names(plan: Plan, where: Where) -> str:
    """What the examples behind one element are called, each once, for messages."""
    indices = dict.fromkeys(plan.locate(where)[0].index.numpy().tolist())
    return ", ".join(_name(plan, index) for index in indices)


def numbers_of(plan: Plan, where: Where) -> list[int]:
    """The numbers, in the source, of the examples behind one element, each once."""
    indices = dict.fromkeys(plan.locate(where)[0].index.numpy().tolist())
    if hasattr(plan.source, "examples_of"):  # what is in a cache has numbers of its own
        return list(dict.fromkeys(number for index in indices for number in plan.source.examples_of(index)))
    return list(indices)


def _name(plan: Plan, index: int) -> str:
    if hasattr(plan.source, "describe"):
        return str(plan.source.describe(index))
    return f"example {index} of {plan.source.fingerprint().get('kind', 'the source')}"


def _to_blame(plan: Plan, where: Where, error: SourceError) -> dict[tuple[int, ...], str]:
    """The examples, by their numbers, because of which an element cannot be loaded, and why.

    Of an element made of several ones (a window, a pack) those that cannot be loaded on their own either; all of them
    if each can.
    """
    inner = where
    for number in reversed(range(len(plan.stages))):
        inner, _ = plan.stages[number].locate(inner)
        if tf.size(inner.index) > 1:
            parts = dataclasses.replace(plan, stages=plan.stages[:number], batching=None, paired=None)
            failed = failed_elements(parts, inner, lambda *one, parts=parts: parts.load_elements(Where(*one)))
            blamed: dict[tuple[int, ...], str] = {}
            for place, reason in failed.items():
                blamed |= _to_blame(parts, _element(inner, place), reason)
            if blamed:
                return blamed
            break
    return {tuple(numbers_of(plan, where)): error.plain}


@dataclasses.dataclass(frozen=True)
class SkippedExample:
    """What was left out because it cannot be read."""

    examples: tuple[int, ...]
    """Its number in the source; several where single examples can be read, but not the window made of them."""
    reason: str
    """What is wrong, with file, record and offset as far as the source knows them."""


class Skipping:
    """Loads batches without the examples that cannot be read, and keeps a list of those.

    A batch that fails is read again row by row. Nothing depends on what was skipped before, so what a batch holds is
    still decided by its number alone.
    """

    def __init__(self, max_share: float, examples: int) -> None:
        self._max_share, self._examples = max_share, examples
        self._skipped: dict[tuple[int, ...], str] = {}
        self._lock = threading.Lock()

    def copy(self) -> "Skipping":
        """For a pipeline with one more stage: what it knows already, and a list of its own from now on."""
        new = Skipping(self._max_share, self._examples)
        new._skipped = dict(self._skipped)
        return new

    @classmethod
    def asked_for(cls, on_error: str, max_skipped: float, examples: int) -> "Skipping | None":
        """None with ``on_error="raise"``. Raises ValueError naming the argument that is out of range."""
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: must be 'raise' or 'skip'")
        if isinstance(max_skipped, bool) or not isinstance(max_skipped, int | float) or not 0 <= max_skipped <= 1:
            raise ValueError(f"max_skipped={max_skipped!r}: must be a share between 0 and 1")
        return cls(max_skipped, examples) if on_error == "skip" else None

    @property
    def skipped(self) -> list[SkippedExample]:
        with self._lock:
            return [SkippedExample(*one) for one in sorted(self._skipped.items())]

    def to_json(self) -> str:
        return json.dumps([dataclasses.astuple(one) for one in self.skipped])

    def add_json(self, text: str) -> None:
        """What ``to_json`` gave; raises as ``add`` does."""
        self._add({tuple(examples): reason for examples, reason in json.loads(text)})

    def loader(self, plan: Plan) -> Callable[[tf.Tensor], Rows]:
        """Like ``plan.load``, without the rows that cannot be read; runs Python code in a data set's thread."""
        spec = {name: self._batch_spec(plan, name) for name in plan.row_spec}

        def load(number: tf.Tensor) -> list[tf.Tensor]:
            try:
                rows = plan.load(number)
            except (tf.errors.OpError, SourceError):
                rows = self._without_bad(plan, number)
            return tf.nest.flatten(rows, expand_composites=True)

        def as_graph(number: tf.Tensor) -> Rows:
            parts = tf.nest.flatten(spec, expand_composites=True)
            values = tf.py_function(load, [number], [part.dtype for part in parts])
            for value, part in zip(values, parts, strict=True):
                value.set_shape(part.shape)
            rows: Rows = tf.nest.pack_sequence_as(spec, values, expand_composites=True)
            return rows

        return as_graph

    def _batch_spec(self, plan: Plan, name: str) -> tf.TypeSpec:
        row = plan.row_spec[name]
        if is_ragged(row) and plan.ragged:
            return tf.RaggedTensorSpec([None, *row.shape], row.dtype, ragged_rank=1)
        return tf.TensorSpec([None, *row.shape], row.dtype)

    def _without_bad(self, plan: Plan, number: tf.Tensor) -> Rows:
        epoch, elements = plan.elements_of(number)
        whole = np.arange(int(tf.size(elements)))
        mine, neighbours = whole[plan.shard_index :: plan.shard_count], np.roll(whole, -1)
        needed = np.union1d(mine, neighbours[mine]) if plan.paired else mine
        found = failed_elements(
            plan, Where(epoch, tf.gather(elements, needed)), functools.partial(plan.load_one, number)
        )
        failed = {int(needed[place]): error for place, error in found.items()}
        for place, error in failed.items():
            if place in mine:
                self.add(plan, _element(Where(epoch, elements), place), error)
        neighbours = np.where(np.isin(neighbours, list(failed)), whole, neighbours)  # without a neighbour: itself
        good = np.setdiff1d(mine, list(failed))
        return plan.load_some(number, tf.constant(good), tf.constant(neighbours[good]))

    def add(self, plan: Plan, where: Where, error: SourceError) -> None:
        """Raises SourceError if more than ``max_share`` of the examples are bad."""
        self._add(_to_blame(plan, where, error))

    def _add(self, blamed: dict[tuple[int, ...], str]) -> None:
        with self._lock:
            self._skipped |= blamed
            count = len(self._skipped)
        if blamed and count > self._max_share * self._examples:
            raise SourceError(
                f"{count} of {self._examples} examples cannot be read, more than max_skipped={self._max_share:g} "
                f"allows. The last one: {list(blamed.values())[-1]}",
                code="source-too-many-bad",
            )


def explained(plan: Plan, number: int, error: tf.errors.OpError) -> Exception:
    """See ``Pipeline.explain``."""
    known = source_error(error)
    if known:
        return known
    first = number * max(plan.stacked, 1)
    for one in range(first, first + max(plan.stacked, 1)):
        batch = tf.constant(one, tf.int64)
        failed = failed_elements(plan, Where(*plan.elements_of(batch)), functools.partial(plan.load_one, batch))
        if failed:
            return next(iter(failed.values()))
    return error
