"""AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) of the rows of a table that a step used.

.. math:: m_t = \\beta_1 m_{t-1} + (1 - \\beta_1) g_t \\qquad v_t = \\beta_2 v_{t-1} + (1 - \\beta_2) g_t^2 \\qquad
   w_t = w_{t-1} - \\eta \\left( \\frac{m_t / (1 - \\beta_1^t)}{\\sqrt{v_t / (1 - \\beta_2^t)} + \\epsilon}
   + \\lambda w_{t-1} \\right)

of used rows w, g being the sum of the gradients of a row; all others, and their moments, wait.

Op ``TfToolkit>AdamWRows``, and ``TfToolkit>SumRows`` for what comes before it: norm and clipping are those of the sums.
``trainers.optimizers.LazyAdam(fused=True)`` calls them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("adamw_rows")
_update = _library.op("AdamWRows")
_sum = _library.op("SumRows")


def adamw_rows(
    apply: Any,
    rate: Any,
    t: Any,
    weight: Any,
    m: Any,
    v: Any,
    indices: Any,
    gradients: Any,
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    name: str | None = None,
) -> Any:
    """Moves the rows of a weight that ``indices`` name, and their moments, by one step.

    For each such row ``w``, in float32, with ``g`` the sum of the gradients of that index, in the order given::

        m <- beta_1 * m + (1 - beta_1) * g            m' = m / (1 - beta_1^t)
        v <- beta_2 * v + (1 - beta_2) * g^2          v' = v / (1 - beta_2^t)
        w <- w - rate * (m' / (sqrt(v') + epsilon) + weight_decay * w)

    Args:
      apply: bool scalar; if it is False, everything stays as it is, bit for bit.
      rate: float32 scalar, the learning rate.
      t: float32 scalar, the number of this update, counted from 1.
      weight, m, v: float32 tensors of one shape, [rows, ...].
      indices: int32 or int64 [n], rows of the weight, in any order and as often as they come.
      gradients: float32 [n, ...], a row for each index; ``...`` as in the weight.
      beta_1, beta_2: how much of the moments is kept; at least 0 and less than 1.
      epsilon: added to the root of the second moment.
      weight_decay: as above.

    Returns:
      The new weight, m and v: a named tuple, in the memory of the old ones where nobody else needs these. All other
      rows keep every bit. Differentiable to any order, but not by ``t``; where v and the gradient of a used row are 0,
      so is the root, which has no derivative there, and NaN comes out.

    Raises:
      ValueError: a beta out of range.
      tf.errors.InvalidArgumentError: an index that is no row of the weight, the first of which is named, also where
        ``apply`` is False (nothing has moved then); shapes that do not fit together. On a GPU, where plain TensorFlow
        runs, such an index is not refused: with ``apply`` the new weight, m and v are NaN everywhere.
    """
    for label, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{label} must be at least 0 and less than 1, but is {beta}")
    return _update(
        *(weight, m, v, indices, gradients, apply, rate, t),
        beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay, name=name,
    )  # fmt: skip


def sum_rows(rows: Any, indices: Any, *, name: str | None = None) -> Any:
    """Rows of one index added up: the first becomes their sum, the others become zeros.

    So they stand for the same as before (``tf.IndexedSlices``), but their norm, or what is clipped in them, is that of
    the sums.

    Args:
      rows: float32 [n, ...].
      indices: int32 or int64 [n], any numbers.

    Returns:
      float32 [n, ...], in the memory of ``rows`` where nobody else needs that; rows are added in the order given.
      Differentiable to any order.

    Raises:
      tf.errors.InvalidArgumentError: not as many indices as rows.
    """
    return _sum(rows, indices, name=name)


# The references


def _rows_of(flags: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[n] as [n, 1, ...], as many dimensions as ``like`` has."""
    import tensorflow as tf

    return tf.reshape(flags, tf.concat([tf.shape(flags), tf.ones([tf.rank(like) - 1], tf.int32)], 0))


@_sum.reference
def _(rows: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    order = tf.argsort(indices, stable=True)
    ids = tf.gather(indices, order)
    begins = tf.concat([tf.ones_like(ids[:1], tf.bool), ids[1:] != ids[:-1]], 0)
    number = tf.cumsum(tf.cast(begins, tf.int32)) - 1
    sums = tf.math.unsorted_segment_sum(tf.gather(rows, order), number, tf.size(ids))
    found = tf.where(_rows_of(begins, rows), tf.gather(sums, number), tf.zeros_like(rows))
    return tf.gather(found, tf.argsort(order))


@_update.reference
def _(
    w: tf.Tensor,
    m: tf.Tensor,
    v: tf.Tensor,
    indices: tf.Tensor,
    gradients: tf.Tensor,
    apply: tf.Tensor,
    rate: tf.Tensor,
    t: tf.Tensor,
    *,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    weight_decay: float,
) -> list[tf.Tensor]:
    import tensorflow as tf

    from tftoolkit.custom_ops.engine import refusing

    t = tf.stop_gradient(t)  # a number of steps
    count = tf.shape(w)[0]
    _, bad = refusing.fitting(indices, count - 1)
    indices = tf.where(bad, tf.constant(-1, indices.dtype), indices)  # which is left out of sums
    room = tf.maximum(count, 1)  # sums of no rows have no gradient
    g = tf.math.unsorted_segment_sum(gradients, indices, room)[:count]
    used = tf.math.unsorted_segment_sum(tf.ones_like(indices, tf.float32), indices, room)[:count] > 0
    moves = _rows_of(used & apply, w)
    new_m = beta_1 * m + (1 - beta_1) * g
    new_v = tf.where(moves, beta_2 * v + (1 - beta_2) * tf.square(g), 1.0)  # 1: else the root has no derivative
    root = tf.sqrt(new_v / _one_minus_power(beta_2, t)) + epsilon
    new_w = w - rate * (new_m / _one_minus_power(beta_1, t) / root + weight_decay * w)
    found = [tf.where(moves, new, old) for new, old in ((new_w, w), (new_m, m), (new_v, v))]
    return [tf.where(tf.reduce_any(bad) & apply, tf.constant(math.nan, x.dtype), x) for x in found]


def _one_minus_power(beta: float, t: tf.Tensor) -> tf.Tensor:
    """``1 - beta^t`` without the cancellation that costs float32 four digits at small ``t``."""
    import tensorflow as tf

    return -tf.math.expm1(t * math.log(beta)) if beta else tf.ones_like(t)


_update.differentiate_reference()
_sum.differentiate_reference()
