"""Bags of embeddings: rows of a table, looked up by ids and added up, averaged or compared, bag by bag.

.. math:: \\mathrm{sum}: y_b = \\sum_{j \\in b} w_j\\, t_{i_j} \\qquad
   \\mathrm{mean}: y_b = \\frac{\\sum_{j \\in b} w_j\\, t_{i_j}}{\\sum_{j \\in b} w_j} \\qquad
   \\mathrm{max}: y_b = \\max_{j \\in b} t_{i_j}

as fastText has it for bags of words (Joulin et al. 2016, https://arxiv.org/abs/1607.01759). Each row's gradient is
:math:`w_j\\, dy_b`, for the mean divided by :math:`\\sum w`, and for the maximum :math:`dy_b` where it is the first of
the largest; that of a weight is :math:`t_{i_j} \\cdot dy_b`, for the mean
:math:`(t_{i_j} - y_b) \\cdot dy_b / \\sum w`.

The rows are never copied, as ``tf.gather`` copies them. Ops ``TfToolkit>EmbeddingBag`` (sum and mean) and
``TfToolkit>EmbeddingBagMax``, whose gradients by the table, ``...Grad``, hold a row for each id, and
``TfToolkit>EmbeddingBagWeightsGrad``. They add up in float32 whatever the table holds.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library, ops

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("embedding_bag")
_forward = _library.op("EmbeddingBag")
_backward = _library.op("EmbeddingBagGrad")
_weights_backward = _library.op("EmbeddingBagWeightsGrad")
_max = _library.op("EmbeddingBagMax")
_max_backward = _library.op("EmbeddingBagMaxGrad")


def embedding_bag(
    table: Any,
    values: Any,
    row_splits: Any = None,
    *,
    weights: Any = None,
    mode: str = "sum",
    name: str | None = None,
) -> Any:
    """The sum, mean or maximum of the rows of ``table`` in each bag of ids.

    Args:
      table: [rows, depth]; float32, bfloat16 or float16.
      values: the ids, int32 or int64, rows of the table: [ids], those of all bags one behind the other, or without
        ``row_splits`` [bags, width], where -1 stands for no id.
      row_splits: int64 or int32 [bags + 1]: where each bag begins in ``values``, and behind them the number of ids, as
        of a ``tf.RaggedTensor``.
      weights: a number for each id, of the shape of ``values``; computed with in float32. Not for "max".
      mode: "sum", "mean" (divided by the sum of the weights, as in ``tf.nn.embedding_lookup_sparse``) or "max".

    Returns:
      [bags, depth] of the table's dtype. A bag without ids gets zeros in every mode, as does a mean whose weights add
      up to 0. NaN in a row makes the bag's sum, mean or maximum NaN there.

      Differentiable by ``table`` and ``weights``. The gradient of the table is sparse: ``tf.IndexedSlices`` with a row
      for each id (an id that occurs twice has two) in TensorFlow, also under XLA; in JAX it is dense. Of equal
      maxima the first gets the gradient. Rows for the -1 of a padded matrix are zeros, under the largest id in it.

    Raises:
      tf.errors.InvalidArgumentError: an id that is no row of the table, the first of which is named; row_splits that do
        not begin with 0, fall, or do not end with the number of ids; shapes that do not fit together. On a GPU, where
        plain TensorFlow runs, ids and row_splits are not refused: the bag with such an id is NaN, as are the gradients
        of its weights; with such row_splits everything is.
      ValueError: an unknown mode, weights for "max", or values of a rank that does not go with row_splits.
    """
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f"mode must be 'sum', 'mean' or 'max', got {mode!r}")
    if mode == "max" and weights is not None:
        raise ValueError("weights are for the modes 'sum' and 'mean': a maximum of weighted rows is not offered")
    padded = row_splits is None
    in_jax = "jax" in sys.modules and ops.is_jax([table, values])
    if not in_jax:
        _share(table)
    values, weights, rank = _arrays(values, weights, in_jax)
    if rank != (2 if padded else 1):
        form = "[bags, width] without row_splits" if padded else "[ids] with row_splits"
        raise ValueError(f"values must be {form}, but has rank {rank}")
    if padded:
        values, weights, row_splits = _flat(values, weights, in_jax)
    if mode == "max":
        return _max(table, values, row_splits, padded=padded, name=name).y
    return _forward(table, values, row_splits, weights, mean=mode == "mean", padded=padded, name=name)


def _share(table: Any) -> None:
    """Lets a variable be read without a copy. What updates some of its rows makes every read one, until told so."""
    from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable

    variable = getattr(table, "value", table)  # Keras' variables hold one
    variable = variable if isinstance(variable, BaseResourceVariable) else table
    if isinstance(variable, BaseResourceVariable):
        import tensorflow as tf

        tf.raw_ops.DisableCopyOnRead(resource=variable.handle)


def _arrays(values: Any, weights: Any, in_jax: bool) -> tuple[Any, Any, int | None]:
    """As tensors or arrays, the weights in float32; and the rank of the values."""
    if in_jax:
        import jax.numpy as jnp

        values = jnp.asarray(values)
        return values, weights if weights is None else jnp.asarray(weights, jnp.float32), values.ndim
    import tensorflow as tf

    values = tf.convert_to_tensor(values)
    return values, weights if weights is None else tf.cast(weights, tf.float32), values.shape.rank


def _flat(values: Any, weights: Any, in_jax: bool) -> tuple[Any, Any, Any]:
    """A matrix of ids as bags of one length, one behind the other; weights; and where the bags begin."""
    if in_jax:
        import jax.numpy as jnp

        bags, width = values.shape
        row_splits = jnp.arange(bags + 1, dtype=jnp.int32) * width
        return values.reshape(-1), weights if weights is None else weights.reshape(-1), row_splits
    import tensorflow as tf

    if weights is not None:
        weights.shape.assert_is_compatible_with(values.shape)
        weights = tf.reshape(weights, [-1])
    bags, width = tf.unstack(tf.shape(values, tf.int64))
    return tf.reshape(values, [-1]), weights, tf.range(bags + 1) * width


def _slices(table: Any, values: Any, drows: Any, padded: bool) -> Any:
    """The gradient of the table, of which each id got a row. What has no id gets one that is used, and adds zeros."""
    if "jax" in sys.modules and ops.is_jax([drows]):
        import jax.numpy as jnp

        return jnp.zeros_like(table).at[jnp.maximum(values, 0)].add(drows)
    import tensorflow as tf

    if padded:
        values = tf.where(values < 0, tf.maximum(tf.reduce_max(values), 0), values)
    shape = tf.shape(table, values.dtype)
    return tf.IndexedSlices(drows, values, shape)


@_forward.gradient
def _(op: Any, dy: Any) -> tuple[Any, ...]:
    table, values, row_splits, weights = op.inputs
    mean, padded, has_weights = (op.get_attr(name) for name in ("mean", "padded", "has_weights"))
    drows = _backward(dy, values, row_splits, weights if has_weights else None, mean=mean)
    dweights = None
    if has_weights:
        dweights = _weights_backward(table, values, row_splits, weights, dy, mean=mean, padded=padded)
    return _slices(table, values, drows, padded), None, None, dweights


@_max.gradient
def _(op: Any, dy: Any, dwhich: Any) -> tuple[Any, ...]:
    table, values, row_splits = op.inputs
    drows = _max_backward(dy, values, row_splits, op.outputs[1])
    return _slices(table, values, drows, op.get_attr("padded")), None, None


# The references


def _bag_of_each(values: tf.Tensor, row_splits: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    bag = tf.searchsorted(tf.cast(row_splits, tf.int64), tf.range(tf.size(values, tf.int64)), side="right") - 1
    return tf.clip_by_value(bag, 0, tf.maximum(tf.size(row_splits) - 2, 0))  # see _unless_bad_borders


def _scales(values: tf.Tensor, bag: tf.Tensor, count: tf.Tensor, weights: tf.Tensor | None, mean: bool) -> tf.Tensor:
    """By what each id's row is multiplied."""
    import tensorflow as tf

    given = tf.ones_like(values, tf.float32) if weights is None else weights
    used = tf.where(values >= 0, given, tf.zeros_like(given))
    if not mean:
        return used
    total = tf.math.unsorted_segment_sum(used, bag, count)
    return used * tf.gather(tf.math.reciprocal_no_nan(total), bag)


def _looked_up(table: tf.Tensor, values: tf.Tensor, padded: bool) -> tf.Tensor:
    """In float32; zeros where there is no id, NaN for an id that is no row: TensorFlow has zeros for that on a GPU."""
    import tensorflow as tf

    from tftoolkit.custom_ops.engine.refusing import fitting, spoilt

    rows, ids = tf.shape(table, tf.int64)[0], tf.cast(values, tf.int64)
    none = (ids == -1) & padded
    ids, bad = fitting(tf.where(none, tf.zeros_like(ids), ids), rows - 1)
    found = tf.gather(_with_zeros(tf.cast(table, tf.float32)), tf.where(none, rows, ids))
    return spoilt(found, bad)


def _unless_bad_borders(found: tf.Tensor, values: tf.Tensor, row_splits: tf.Tensor) -> tf.Tensor:
    """All of it NaN if bags do not lie one behind the other, from the first to the last id."""
    import tensorflow as tf

    from tftoolkit.custom_ops.engine.refusing import spoilt

    borders, ids = tf.cast(row_splits, tf.int64), tf.size(values, tf.int64)
    rising = tf.concat([[0], borders, [ids]], 0)
    ends = tf.reduce_any(borders[:1] != 0) | tf.reduce_any(borders[-1:] != ids)
    return spoilt(found, ends | tf.reduce_any(rising[1:] < rising[:-1]))


def _with_zeros(rows: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.pad(rows, [[0, 1], [0, 0]])


@_forward.reference
def _(table: tf.Tensor, values: tf.Tensor, row_splits: tf.Tensor, weights: Any, *, mean: bool, padded: bool) -> Any:
    import tensorflow as tf

    bag, count = _bag_of_each(values, row_splits), tf.size(row_splits) - 1
    scales = _scales(values, bag, count, weights, mean)
    rows = _looked_up(table, values, padded) * scales[:, None]
    y = tf.math.unsorted_segment_sum(rows, bag, count)
    return tf.cast(_unless_bad_borders(y, values, row_splits), table.dtype)


@_backward.reference
def _(dy: tf.Tensor, values: tf.Tensor, row_splits: tf.Tensor, weights: Any, *, mean: bool) -> tf.Tensor:
    import tensorflow as tf

    bag = _bag_of_each(values, row_splits)
    scales = _scales(values, bag, tf.shape(dy)[0], weights, mean)[:, None]
    rows = tf.cast(tf.gather(dy, bag), tf.float32) * scales
    rows = tf.where(values[:, None] >= 0, rows, tf.zeros_like(rows))
    return tf.cast(_unless_bad_borders(rows, values, row_splits), dy.dtype)


@_weights_backward.reference
def _(table: Any, values: Any, row_splits: Any, weights: Any, dy: Any, *, mean: bool, padded: bool) -> Any:
    import tensorflow as tf

    bag, count = _bag_of_each(values, row_splits), tf.shape(dy)[0]
    dots = tf.reduce_sum(_looked_up(table, values, padded) * tf.cast(tf.gather(dy, bag), tf.float32), axis=1)
    dots = _unless_bad_borders(dots, values, row_splits)
    if not mean:
        return dots
    used = tf.where(values >= 0, weights, tf.zeros_like(weights))
    inverse = tf.math.reciprocal_no_nan(tf.math.unsorted_segment_sum(used, bag, count))
    average = tf.math.unsorted_segment_sum(used * dots, bag, count) * inverse
    found = (dots - tf.gather(average, bag)) * tf.gather(inverse, bag)
    return tf.where((values == -1) & padded, tf.zeros_like(found), found)


@_max.reference
def _(table: tf.Tensor, values: tf.Tensor, row_splits: tf.Tensor, *, padded: bool) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    bag, count = _bag_of_each(values, row_splits), tf.size(row_splits) - 1
    rows, there = _looked_up(table, values, padded), ~((values[:, None] == -1) & padded)
    is_nan = tf.math.is_nan(rows)
    comparable = tf.where(there & ~is_nan, rows, tf.fill(tf.shape(rows), -math.inf))
    best = tf.math.unsorted_segment_max(comparable, bag, count)
    has_nan = tf.math.unsorted_segment_max(tf.cast(is_nan & there, tf.int32), bag, count) > 0
    chosen = tf.where(tf.gather(has_nan, bag), is_nan, rows == tf.gather(best, bag)) & there
    place = tf.range(tf.size(values)) - tf.cast(tf.gather(row_splits, bag), tf.int32)
    none = tf.int32.max
    which = tf.math.unsorted_segment_min(tf.where(chosen, place[:, None], none), bag, count)
    empty = which == none
    which = tf.where(empty, -1, which)
    # Through the rows, so that the first of the largest gets the gradient.
    first = tf.cast(row_splits[:-1], tf.int32)[:, None] + tf.maximum(which, 0)
    first = tf.where(empty, tf.size(values), tf.clip_by_value(first, 0, tf.size(values)))
    y = tf.gather(tf.transpose(_with_zeros(rows)), tf.transpose(first), batch_dims=1)
    return tf.cast(_unless_bad_borders(tf.transpose(y), values, row_splits), table.dtype), which


@_max_backward.reference
def _(dy: tf.Tensor, values: tf.Tensor, row_splits: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    bag = _bag_of_each(values, row_splits)
    place = tf.range(tf.size(values)) - tf.cast(tf.gather(row_splits, bag), tf.int32)
    chosen = tf.gather(which, bag) == place[:, None]
    rows = tf.gather(dy, bag)
    return _unless_bad_borders(tf.where(chosen, rows, tf.zeros_like(rows)), values, row_splits)


_backward.differentiate_reference()
_weights_backward.differentiate_reference()
_max_backward.differentiate_reference()
