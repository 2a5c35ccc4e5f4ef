"""Warps of images by grid_sample, under the meanings of TensorFlow Addons 0.23: plain TensorFlow around the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tftoolkit.custom_ops.grid_sample import sample_pixels

if TYPE_CHECKING:
    import tensorflow as tf

_LEAST = 1e-10  # of squared distances: neither the logarithm nor the root's derivative takes 0


def resampler(data: Any, warp: Any, name: str | None = None) -> tf.Tensor:
    """Samples bilinearly at places in pixels, as ``tfa.image.resampler`` did.

    Args:
      data: [batch, height, width, channels]; float32, bfloat16 or float16.
      warp: [batch, ..., 2]: x and y of each point, in pixels; computed with in float32.

    Returns:
      [batch, ..., channels], of data's dtype. What lies outside is 0; within a pixel of the edge it is blended with
      that. Differentiable by both.

    Raises:
      InvalidArgumentError (ValueError where a graph is built): data and warp are not of these shapes.
    """
    import tensorflow as tf

    with tf.name_scope(name or "resampler"):
        data, warp = tf.convert_to_tensor(data), tf.cast(warp, tf.float32)
        shape = tf.shape(warp)
        points = tf.reshape(warp, tf.stack([shape[0], 1, tf.reduce_prod(shape[1:-1]), 2]))
        found = sample_pixels(data, points, "bilinear", "zeros")
        found = tf.reshape(found, tf.concat([shape[:-1], tf.shape(data)[-1:]], 0))
        return tf.ensure_shape(found, [*warp.shape[:-1], data.shape[-1]] if warp.shape.rank else None)


def _shape(name: str, value: tf.Tensor, wanted: Sequence[int | None]) -> list[int | None]:
    """What is known of a shape (None: any size). Raises ValueError where it can't be the wanted one."""
    if not value.shape.is_compatible_with(list(wanted)):
        text = ", ".join("any" if size is None else str(size) for size in wanted)
        raise ValueError(f"{name} has shape {value.shape}, but must have [{text}]")
    known: list[int | None] = value.shape.with_rank(len(wanted)).as_list()
    return known


def dense_image_warp(image: Any, flow: Any, name: str | None = None) -> tf.Tensor:
    """Moves each pixel by a flow of its own, as ``tfa.image.dense_image_warp`` did.

    Args:
      image: [batch, height, width, channels]; float32, bfloat16 or float16.
      flow: [batch, height, width, 2], in pixels: pixel (row, column) of the result comes from
        (row - flow[..., 0], column - flow[..., 1]); computed with in float32.

    Returns:
      A tensor of the image's shape and dtype, interpolated bilinearly; outside lies the nearest pixel. Differentiable
      by both.

    Raises:
      ValueError: image and flow are not of these shapes.
    """
    import tensorflow as tf

    with tf.name_scope(name or "dense_image_warp"):
        image, flow = tf.convert_to_tensor(image), tf.cast(flow, tf.float32)
        _shape("flow", flow, [*_shape("image", image, [None] * 4)[:3], 2])
        shape = tf.shape(image)
        rows, columns = (tf.range(tf.cast(shape[axis], tf.float32)) for axis in (1, 2))
        x, y = columns[None, None, :] - flow[..., 1], rows[None, :, None] - flow[..., 0]
        return sample_pixels(image, tf.stack([x, y], axis=-1), "bilinear", "border")


def sparse_image_warp(
    image: Any,
    source_control_point_locations: Any,
    dest_control_point_locations: Any,
    interpolation_order: int = 2,
    regularization_weight: float = 0.0,
    num_boundary_points: int = 0,
    name: str | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Moves control points to where they should be, and what is between them smoothly, as ``tfa.image`` did.

    The points' shifts are interpolated by :func:`interpolate_spline`, and the image is warped by that flow.

    Args:
      image: [batch, height, width, channels]; float32, bfloat16 or float16.
      source_control_point_locations, dest_control_point_locations: [batch, points, 2], rows and columns in pixels;
        float32 or float64, in which the flow is computed.
      interpolation_order, regularization_weight: of the spline.
      num_boundary_points: how many points on each edge, one corner among them, stay where they are; 0 for none.

    Returns:
      The image, and the flow, [batch, height, width, 2]. Differentiable by image and both locations.

    Raises:
      ValueError: shapes that are not these.
      tf.errors.InvalidArgumentError: the spline's system is singular, as when points coincide or lie on a line.
    """
    import tensorflow as tf

    with tf.name_scope(name or "sparse_image_warp"):
        image, source = tf.convert_to_tensor(image), _wide(source_control_point_locations)
        dest = tf.cast(dest_control_point_locations, source.dtype)
        points = [_shape("image", image, [None] * 4)[0], None, 2]
        points = _shape("source_control_point_locations", source, points)
        _shape("dest_control_point_locations", dest, points)
        flow, shape = dest - source, tf.shape(image)
        rows, columns = (tf.range(tf.cast(shape[axis], source.dtype)) for axis in (1, 2))
        if num_boundary_points > 0:
            edge = _edge(tf.stack([rows[-1], columns[-1]]), num_boundary_points)
            edge = tf.broadcast_to(edge, tf.concat([tf.shape(dest)[:1], tf.shape(edge)], 0))
            dest, flow = tf.concat([dest, edge], 1), tf.concat([flow, tf.zeros_like(edge)], 1)
        pixels = tf.reshape(tf.stack(tf.meshgrid(rows, columns, indexing="ij"), axis=-1), [1, -1, 2])
        pixels = tf.broadcast_to(pixels, tf.concat([tf.shape(dest)[:1], tf.shape(pixels)[1:]], 0))
        found = interpolate_spline(dest, flow, pixels, interpolation_order, regularization_weight)
        found = tf.reshape(found, tf.concat([shape[:3], [2]], 0))
        return dense_image_warp(image, found), found


def interpolate_spline(
    train_points: Any,
    train_values: Any,
    query_points: Any,
    order: int,
    regularization_weight: float = 0.0,
    name: str | None = None,
) -> tf.Tensor:
    """Interpolates values at scattered points by a polyharmonic spline (Duchon 1977), as ``tfa.image`` did.

    f(x) = sum over points c of w_c phi(|x - c|) + v x + b, phi(r) = r^order, for even orders times log r: 2 is the
    thin-plate spline. w, v and b make f right at the points, w orthogonal to them and of sum 0.

    Args:
      train_points: [batch, n, d]; float32 or float64.
      train_values: [batch, n, k]: the values at these points.
      query_points: [batch, m, d].
      regularization_weight: added to the diagonal of the system: f is smoother then, and misses the values.

    Returns:
      [batch, m, k]. Differentiable by all three.

    Raises:
      tf.errors.InvalidArgumentError: the system is singular, as when points coincide or lie on a line.
    """
    import tensorflow as tf

    with tf.name_scope(name or "interpolate_spline"):
        points = _wide(train_points)
        values, queries = (tf.cast(one, points.dtype) for one in (train_values, query_points))
        with_one = tf.concat([points, tf.ones_like(points[..., :1])], -1)
        matrix = _phi(_squared_distances(points, points), order)
        matrix += regularization_weight * tf.eye(tf.shape(points)[1], dtype=points.dtype)
        count = points.shape[-1] + 1
        corner = tf.zeros(tf.stack([tf.shape(points)[0], count, count]), points.dtype)
        lower = tf.concat([tf.linalg.matrix_transpose(with_one), corner], 2)
        system = tf.concat([tf.concat([matrix, with_one], 2), lower], 1)
        right = tf.pad(values, [[0, 0], [0, count], [0, 0]])
        weights = tf.linalg.solve(system, right)
        near = tf.concat([_phi(_squared_distances(queries, points), order), queries, tf.ones_like(queries[..., :1])], 2)
        return tf.matmul(near, weights)


def _wide(points: Any) -> tf.Tensor:
    import tensorflow as tf

    points = tf.convert_to_tensor(points)
    return points if points.dtype == tf.float64 else tf.cast(points, tf.float32)


def _squared_distances(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """[batch, n, m]; by differences, since |a|² - 2 a b + |b|² loses the small ones."""
    import tensorflow as tf

    differences = [one[:, :, None, axis] - other[:, None, :, axis] for axis in range(one.shape[-1])]
    return tf.add_n([difference * difference for difference in differences])


def _phi(squared: tf.Tensor, order: int) -> tf.Tensor:
    import tensorflow as tf

    floored = tf.maximum(squared, _LEAST)
    if order % 2:
        return tf.pow(floored, 0.5 * order)
    base = squared if order in (2, 4) else floored
    return 0.5 * tf.pow(base, order // 2) * tf.math.log(floored)


def _edge(last: tf.Tensor, per_edge: int) -> tf.Tensor:
    """[4 * per_edge, 2]: points at equal distances on the edges of a picture whose last pixel is at ``last``."""
    import tensorflow as tf

    steps = np.arange(per_edge + 1)
    places = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    places = places[np.any((places == 0) | (places == per_edge), axis=1)]
    return tf.constant(places / per_edge, last.dtype) * last
