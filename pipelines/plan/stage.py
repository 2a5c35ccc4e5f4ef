"""What a plan asks of its stages, which lie between the examples of a source and the batches."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from tftoolkit.pipelines.sources.rows import Rows
from tftoolkit.pipelines.sources.source import Example, Source, Spec


class Where(NamedTuple):
    """Addresses of n elements: int64[n] each, or one epoch (int64 scalar) for all of them."""

    epoch: tf.Tensor
    index: tf.Tensor

    @classmethod
    def one(cls, index: int) -> "Where":
        """Element ``index`` of the first epoch alone."""
        return cls(tf.constant(0, tf.int64), tf.constant([index], tf.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A sequence of elements per epoch, computed from those of the stage before.

    To load some elements, their addresses go down through ``locate`` of all stages to the source, and the rows read
    there come up through ``build``. With the rows comes the identity of each: the address that random keys are made of,
    which is not touched by the order (shuffle, take, filter) that it is visited in.
    """

    element_spec: Spec
    length: int
    """Elements per epoch."""

    def locate(self, where: Where) -> tuple[Where, Any]:
        """Which elements of the stage before are needed, and whatever ``build`` must know."""
        return where, None

    def fetch(self, source: Source, indices: tf.Tensor, context: Any) -> Rows:
        """Reads from the source; called of the first stage only."""
        return source.fetch(indices)

    def build(self, rows: Rows, identity: Where, context: Any) -> tuple[Rows, Where]:
        """The elements, from those of the stage before."""
        return rows, identity

    @property
    def label(self) -> str:
        """What stands in states, profiles and error messages; all that decides the stage's result is in it."""
        raise NotImplementedError

    @property
    def key(self) -> Hashable:
        """What equal stages have in common; by default a stage is equal to itself alone."""
        return self

    @property
    def one_to_one(self) -> bool:
        """Whether each element is made of one element of the stage before, and ``locate`` has nothing to tell."""
        return True

    @property
    def shuffles(self) -> bool:
        """Whether it brings elements into a random order."""
        return False

    @property
    def map_functions(self) -> int:
        """How many functions of ``map`` it holds: the next one's number follows from it."""
        return 0

    @property
    def orders(self) -> int:
        """How many random streams for the order it takes up: the next one's number follows from it."""
        return 1

    @property
    def varies(self) -> bool:
        """Whether elements are others in another epoch or under another seed, so that no plan can be made of them."""
        return False


class Mixing(Protocol):
    """What changes each row of a batch together with its neighbour; see ``Paired``."""

    @property
    def after(self) -> Spec:
        """Of one row, mixed."""

    @property
    def label(self) -> str: ...

    def apply(self, rows: Rows, neighbours: Rows, identity: Where, seed: int) -> Rows: ...


class Vectorized:
    """A function of one example that is written over the rows of a whole batch, so a batch costs one call.

    Calling it with one example runs the same code on a batch of one: there is no second implementation. It is right
    only if no row looks at another row. A feature whose first dimension varies comes as a RaggedTensor.
    """

    def __init__(self, name: str, over_rows: Callable[..., Example]) -> None:
        """``over_rows(batch)`` or ``over_rows(batch, keys)`` with keys int32[n, 2]; ``name`` stands in states."""
        self.__name__ = name
        self.over_rows = over_rows

    def __call__(self, example: Example, *key: tf.Tensor) -> Example:
        batch = {name: tf.convert_to_tensor(value)[tf.newaxis] for name, value in example.items()}
        keys = (tf.convert_to_tensor(one)[tf.newaxis] for one in key)
        return {name: value[0] for name, value in self.over_rows(batch, *keys).items()}


class Paired:
    """A function of each row and its neighbour, for stages that mix two examples; stands right after ``batch``.

    The neighbour is the next row of the whole batch (of the last row, the first one), however many workers share the
    batch.
    """

    def __init__(self, name: str, over_rows: Callable[..., Example]) -> None:
        """``over_rows(batch, neighbours, keys)``, dense, keys int32[n, 2]; ``name`` stands in states."""
        self.__name__ = name
        self.over_rows = over_rows
