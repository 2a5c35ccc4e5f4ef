"""One pass over all elements of a plan, for what has to be known of each before any can be dealt out."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.plan.bad_examples import Skipping, failed_elements
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.stage import Where
from tftoolkit.pipelines.progress import progress
from tftoolkit.pipelines.sources.rows import Rows, Varied

ROWS_AT_ONCE = 256


def scan(
    plan: Plan, purpose: str, reduce: Callable[[Rows, tf.Tensor], Any], skipping: Skipping | None
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields element numbers and what ``reduce`` makes of these elements, batch by batch, with a progress bar.

    Args:
      purpose: what the bar says.
      reduce: rows, and int64[n, 2] the epochs and numbers that their random keys are made of -> anything that
        TensorFlow can return; runs as graph.
      skipping: leaves out elements that cannot be read; without it they raise SourceError.
    """
    zero = tf.constant(0, tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    def load(elements: tf.Tensor) -> Any:
        rows, identity = plan.load_elements(Where(zero, elements))
        # Where bad elements are to be found, all of them are read whole, also what is not needed for the result.
        needed = tf.nest.flatten(rows, expand_composites=True) if skipping else []
        with tf.control_dependencies(needed):
            return tf.nest.map_structure(tf.identity, reduce(rows, as_pairs(identity)), expand_composites=True)

    with progress(purpose, plan.length, " examples") as bar:
        for first in range(0, plan.length, ROWS_AT_ONCE):
            elements = np.arange(first, min(first + ROWS_AT_ONCE, plan.length))
            try:
                result = load(tf.constant(elements))
            except (tf.errors.OpError, SourceError) as error:
                failed = failed_elements(plan, Where(zero, tf.constant(elements)), lambda _, element: load(element))
                if not skipping:
                    raise next(iter(failed.values()), error) from None
                for place, reason in failed.items():
                    skipping.add(plan, Where(zero, tf.constant(elements[place : place + 1])), reason)
                elements = np.setdiff1d(elements, elements[list(failed)])
                result = load(tf.constant(elements))
            yield elements, result
            bar.update(min(ROWS_AT_ONCE, plan.length - first))


def need_fixed(plan: Plan, stage: str) -> None:
    """Raises ValueError if another epoch has other elements, so that one pass cannot tell ``stage`` about all."""
    if hasattr(plan.source, "order"):
        raise ValueError(
            f"{stage}: its plan is made once for all epochs, but a mixture deals out other examples in each of them; "
            "use a source that is no mixture"
        )
    changing = [one.label for one in plan.stages if one.varies]
    if changing:
        raise ValueError(
            f"{stage}: its plan is made once for all epochs, but what comes before differs from epoch to epoch "
            f"({', '.join(changing)}); put .{stage}(…) before that"
        )


def as_pairs(where: Where) -> tf.Tensor:
    """int64[n, 2]: epochs and numbers."""
    return tf.stack([where.epoch + tf.zeros_like(where.index), where.index], axis=1)


def lengths_of(plan: Plan, feature: str, skipping: Skipping | None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (int64[n]) and lengths (int64[n]) of all elements that can be read.

    A source that knows the lengths is asked, if all its elements count; else everything is read once.
    """
    if not skipping and not plan.stages and hasattr(plan.source, "lengths"):
        known = np.asarray(plan.source.lengths(feature), np.int64)
        return np.arange(len(known)), known

    def lengths(rows: Rows, _: tf.Tensor) -> tf.Tensor:
        value = rows[feature]
        if isinstance(value, Varied):
            return value.shapes[:, 0]
        if isinstance(value, tf.RaggedTensor):
            return value.row_lengths()
        return tf.fill(tf.shape(value)[:1], tf.shape(value, tf.int64)[1])

    found = [(elements, result.numpy()) for elements, result in scan(plan, f"length of {feature}", lengths, skipping)]
    return np.concatenate([elements for elements, _ in found]), np.concatenate([result for _, result in found])
