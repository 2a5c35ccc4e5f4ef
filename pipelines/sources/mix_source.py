"""A source that mixes others in exact proportions.

How the pipeline finds an example: ``order``
--------------------------------------------
A plain shuffle of the mixture would keep the proportions only on average, so this source says itself which example
stands where. Any source may have this optional method::

    order(epoch, index, seed, shuffled) -> (epoch, index)

    in   epoch     int64[n]   the pipeline's epoch of each element
         index     int64[n]   the element's place in that epoch, 0 … len(source)-1: in order, NOT permuted
         seed      int        the pipeline's seed
         shuffled  bool       whether the pipeline is shuffled
    out  epoch     int64[n]   what the random keys of the map stages are made of, together with ...
         index     int64[n]   ... the number that ``fetch`` and ``describe`` take

It replaces the pipeline's permutation, shuffled or not; it is called inside the data set's graph and is a pure function
of its arguments. No pair (epoch, index) comes out twice, so no two elements share a key.

The schedule
------------
Weights become integers w_i with the sum W. Element g = epoch · len + index belongs to component c = table[g mod W] and
is its example number k = (g div W) · w_c + rank[g mod W], that is example k mod n_c of its epoch k div n_c: O(1), from
a table of W entries. The table is Tijdeman's solution of the chairman assignment problem ("The chairman assignment
problem", Discrete Mathematics 32, 1980): after any number of elements g, each component has had w_i·g / W of them to
within 1 - 1/(2m-2), for m components. A window is the difference of two such counts, so it is exact to within
2 - 1/(m-1) examples, wherever it lies and however long it is, also across epochs.
"""

import heapq
import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.keys import fold, stream_state
from tftoolkit.pipelines.permutation import permute
from tftoolkit.pipelines.sources.continued_rows import check_rows_go_on
from tftoolkit.pipelines.sources.source import Example, Source, Spec

MAX_PERIOD = 100_000

_ORDER_STREAM = 0  # as for a plain shuffle


class MixSource:
    """See ``mix``."""

    def __init__(
        self, components: Mapping[str, tuple[Source, int | float | Fraction]], component_feature: str | None
    ) -> None:
        _check_components(components)
        self.names = tuple(components)
        self._sources = [source for source, _ in components.values()]
        self._feature = component_feature
        self.element_spec: Spec = _common_spec(self.names, self._sources)
        if component_feature is not None:
            if component_feature in self.element_spec:
                raise ValueError(f"component_feature={component_feature!r}: the components have such a feature already")
            self.element_spec[component_feature] = tf.TensorSpec([], tf.int64)
        self._weights = _integer_weights({name: weight for name, (_, weight) in components.items()})
        table, rank = _schedule(self._weights)
        sizes = [len(source) for source in self._sources]
        self._length = sum(sizes)
        self._starts = np.cumsum([0, *sizes])
        with tf.device("CPU:0"):
            self._table, self._rank = tf.constant(table, tf.int32), tf.constant(rank, tf.int64)

    def __len__(self) -> int:
        return self._length

    def order(self, epoch: tf.Tensor, index: tf.Tensor, seed: int, shuffled: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """See the top of this file."""
        element = epoch * self._length + index
        place = element % len(self._table)
        component = tf.gather(self._table, place)
        number = element // len(self._table) * tf.gather(tf.constant(self._weights, tf.int64), component)
        number += tf.gather(self._rank, place)
        sizes = tf.gather(tf.constant(np.diff(self._starts), tf.int64), component)
        own_epoch, in_order = number // sizes, number % sizes
        epochs, indices = own_epoch, in_order
        if shuffled:
            states = fold(stream_state(seed, own_epoch, _ORDER_STREAM), component)
            indices = permute(in_order, sizes, states)
        for c, source in enumerate(self._sources):
            if hasattr(source, "order"):
                mine = component == c
                own_seed = (seed + (c + 1) * 0x9E3779B97F4A7C15) % (1 << 63)
                ordered = source.order(tf.where(mine, own_epoch, 0), tf.where(mine, in_order, 0), own_seed, shuffled)
                epochs, indices = tf.where(mine, ordered[0], epochs), tf.where(mine, ordered[1], indices)
        return epochs, indices + tf.gather(tf.constant(self._starts, tf.int64), component)

    def fetch(self, indices: tf.Tensor) -> Example:
        component = tf.searchsorted(tf.constant(self._starts[1:], tf.int64), indices, side="right")
        parts = [
            source.fetch(part - start)
            for source, part, start in zip(
                self._sources, self._partition(indices, component), self._starts[:-1], strict=True
            )
        ]
        back = self._back(component)
        rows = {name: tf.gather(tf.concat([part[name] for part in parts], 0), back) for name in parts[0]}
        if self._feature is not None:
            rows[self._feature] = tf.cast(component, tf.int64)
        return rows

    def fingerprint(self) -> dict[str, Any]:
        parts = zip(self.names, self._weights, self._sources, strict=True)
        return {
            "kind": "mix",
            "components": {name: {"weight": weight, "source": one.fingerprint()} for name, weight, one in parts},
        }

    def describe(self, index: int) -> str:
        c = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self.names[c]}: {self._sources[c].describe(index - int(self._starts[c]))}"

    def _partition(self, values: tf.Tensor, component: tf.Tensor) -> list[tf.Tensor]:
        parts: list[tf.Tensor] = tf.dynamic_partition(values, component, len(self._sources))
        return parts

    def _back(self, component: tf.Tensor) -> tf.Tensor:
        """Where each row stands once the components' rows have been joined, one component after the other."""
        rows = tf.range(tf.size(component))
        return tf.math.invert_permutation(tf.concat(self._partition(rows, component), 0))


def mix(
    components: Mapping[str, tuple[Source, int | float | Fraction]], *, component_feature: str | None = None
) -> MixSource:
    """A source that mixes others: in every window of n examples, component i has n·w_i / Σw, to within 2.

    An epoch is as long as all components together. Each component goes through its own epochs: it repeats sooner than
    the mixture where its weight is more than its share of the examples, and in a shuffled pipeline each of its epochs
    has an order of its own. The proportions hold across epochs and after a resumption; with ``drop_remainder`` the
    examples left out at an epoch's end are missing from them.

    Args:
      components: name -> (source, weight). Weights are taken exactly, as written in decimal; only their ratio counts.
      component_feature: adds a feature of this name to each example: the component's place in ``components``, int64.

    Raises:
      TypeError, ValueError: no component, an empty one, features that differ between components, or weights that are
        not positive or whose ratio needs integers with a sum above 100,000.
    """
    return MixSource(components, component_feature)


def _check_components(components: Any) -> None:
    if not isinstance(components, Mapping):
        raise TypeError(f"components: expected a dict name -> (source, weight), got {type(components).__name__}")
    if not components:
        raise ValueError("components: the dict is empty; give at least one (source, weight)")
    for name, component in components.items():
        if not isinstance(name, str) or not isinstance(component, tuple) or len(component) != 2:
            raise TypeError(f"components[{name!r}]: expected (source, weight) by name, got {component!r}")
        source, weight = component
        if not hasattr(source, "fetch") or not hasattr(source, "element_spec"):
            raise TypeError(f"components[{name!r}]: expected one of pipelines.sources, got {source!r}")
        if not len(source):
            raise ValueError(f"components[{name!r}]: the source is empty")
        check_rows_go_on(source, ["mix"])
        if isinstance(weight, bool) or not isinstance(weight, int | float | Fraction | np.integer | np.floating):
            raise TypeError(f"components[{name!r}]: the weight must be a number, got {weight!r}")
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(
                f"components[{name!r}]: the weight must be positive, got {weight!r}; leave it out if it is 0"
            )


def _common_spec(names: tuple[str, ...], sources: list[Source]) -> Spec:
    first = dict(sources[0].element_spec)
    for name, source in zip(names, sources, strict=True):
        spec = source.element_spec
        differences = [
            f"{feature}: {_short(first.get(feature))} in {names[0]!r}, {_short(spec.get(feature))} in {name!r}"
            for feature in sorted(first.keys() | spec.keys())
            if first.get(feature) != spec.get(feature)
        ]
        if differences:
            raise ValueError(f"components: their features differ; {'; '.join(differences)}. Make them the same first")
    return first


def _short(spec: tf.TensorSpec | None) -> str:
    return "missing" if spec is None else f"{spec.dtype.name}{spec.shape}"


def _integer_weights(weights: Mapping[str, Any]) -> list[int]:
    """The smallest integers in the ratio of ``weights``; 0.1 is a tenth, as it is written."""
    exact = [
        Fraction(weight) if isinstance(weight, int | Fraction) else Fraction(Decimal(str(weight)))
        for weight in weights.values()
    ]
    scale = math.lcm(*(one.denominator for one in exact))
    integers = [int(one * scale) for one in exact]
    divisor = math.gcd(*integers)
    integers = [one // divisor for one in integers]
    if sum(integers) > MAX_PERIOD:
        near = {name: max(1, round(1000 * one / sum(integers))) for name, one in zip(weights, integers, strict=True)}
        raise ValueError(
            f"components: the weights {dict(weights)} have no integer ratio with a sum up to {MAX_PERIOD:,}, so "
            f"proportions cannot be exact; near them are {near}"
        )
    return integers


def _schedule(weights: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tijdeman's schedule of one period: for each place the component, and how many it had before.

    With the slack s = 1 - 1/(2m-2), the j-th example of component i may come once w_i·g/W ≥ j - s, and must have come
    before w_i·g/W exceeds j - 1 + s (j from 1, g the elements so far, this one included). Taking the most urgent of
    those that may come meets all these deadlines. Integers throughout: everything is multiplied by 2m-2.
    """
    period, unit = sum(weights), max(1, 2 * len(weights) - 2)
    slack = unit - 1 if len(weights) > 1 else 0

    def entry(component: int, number: int) -> tuple[int, int, int, int]:
        weight = weights[component] * unit
        release = -(-(number * unit - slack) * period // weight)
        deadline = ((number - 1) * unit + slack) * period // weight
        return release, deadline, component, number

    waiting = [entry(component, 1) for component in range(len(weights))]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []
    table, rank = np.empty(period, np.int32), np.empty(period, np.int64)
    for place in range(period):
        while waiting and waiting[0][0] <= place + 1:
            _, deadline, component, number = heapq.heappop(waiting)
            heapq.heappush(ready, (deadline, component, number))
        _, component, number = heapq.heappop(ready)
        table[place], rank[place] = component, number - 1
        heapq.heappush(waiting, entry(component, number + 1))
    return table, rank
