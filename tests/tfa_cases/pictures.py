"""Images, layers."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfa_cases import case, keras, ops, recipe

_RANDOM = np.random.default_rng(2)


def _normal(*shape: int) -> np.ndarray:
    return _RANDOM.normal(size=shape).astype(np.float32)


X, VECTORS = _normal(3, 7) * 2, _normal(8, 4)

# Images.
BATCH = _RANDOM.random((2, 9, 7, 3)).astype(np.float32)
BYTES = _RANDOM.integers(0, 256, (9, 7, 3)).astype(np.uint8)
POINTS, QUERIES = _normal(2, 6, 2), _normal(2, 5, 2)
SPLINE = POINTS, POINTS[:, :, :1], QUERIES


def _image(name: str, *arguments: Any, tolerance: float = 1e-5, **options: Any) -> None:
    variant = f" {' '.join(map(str, options.values()))}" if options else ""
    case(
        f"image.{name}{variant}",
        lambda a: getattr(a.image, name)(*arguments, **options),
        lambda: getattr(recipe("image"), name)(*arguments, **options),
        tolerance,
    )


_image("adjust_hsv_in_yiq", BATCH, 0.3, 1.2, 0.9)
_image("random_hsv_in_yiq", BATCH, 0.0, 1.2, 1.2, 0.9, 0.9)
for factor in (0.3, 1.7):
    _image("blend", BYTES, BYTES[::-1], factor=factor)
    _image("sharpness", BYTES[None], factor=factor)
_image("equalize", BYTES)
_image("cutout", tf.constant(BATCH), (4, 2), offset=(3, 1), constant_values=1)
for indexing in ("ij", "xy"):
    _image("interpolate_bilinear", BATCH, QUERIES * 4, indexing=indexing)
for padding in ("REFLECT", "CONSTANT", "SYMMETRIC"):
    _image("mean_filter2d", BATCH, (3, 4), padding=padding)
_image("gaussian_filter2d", BATCH, (5, 3), sigma=(1.5, 0.7))
ANGLES = np.array([0.3, -1.0], np.float32)
_image("angles_to_projective_transforms", ANGLES, 9.0, 7.0)
_image("translations_to_projective_transforms", np.array([[1.0, -2.0], [0.5, 3.0]], np.float32))
TRANSFORMS = [
    np.array([1.0, 0.2, 3, 0.1, 0.9, -1, 0.01, 0.02], np.float32),
    np.array([0.8, 0, 1, 0.3, 1.1, 2, 0, 0.01], np.float32),
]
_image("compose_transforms", TRANSFORMS)
_image("shear_x", BYTES, 0.4, 7)
_image("shear_y", BYTES, -0.3, [1, 2, 3])
_image("translate_xy", BYTES, [2, -1], 9)


def _op(symbol: str, name: str, *arguments: Any, tolerance: float = 1e-5, **options: Any) -> None:
    variant = f" {' '.join(map(str, options.values()))}" if options else ""
    case(
        f"image.{symbol}{variant}",
        lambda a: getattr(a.image, symbol)(*arguments, **options),
        lambda: getattr(ops(), name)(*arguments, **options),
        tolerance,
    )


for order in (1, 2, 3):
    weight = 0.1 * order
    _op(
        "interpolate_spline",
        "interpolate_spline",
        POINTS,
        POINTS[:, :, :1],
        QUERIES,
        order,
        regularization_weight=weight,
        tolerance=1e-3,
    )
_op("dense_image_warp", "dense_image_warp", BATCH, _normal(2, 9, 7, 2))
for mode in ("nearest", "bilinear"):
    _op("transform", "image_transform", BATCH, np.stack(TRANSFORMS), interpolation=mode)
    _op("rotate", "rotate", BATCH, ANGLES, interpolation=mode)
    _op("translate", "translate", BATCH, np.array([[1.5, -2.0], [0.5, 3.0]], np.float32), interpolation=mode)
for padding in ("REFLECT", "CONSTANT", "SYMMETRIC"):
    _op("median_filter2d", "median_filter2d", BATCH, (3, 5), padding=padding)
FROM = np.array([[[1.0, 1.0], [5.0, 2.0], [3.0, 6.0]]] * 2, np.float32)
case(
    "image.sparse_image_warp",
    lambda a: a.image.sparse_image_warp(BATCH, FROM, FROM + 0.7, num_boundary_points=2)[0],
    lambda: ops().sparse_image_warp(BATCH, FROM, FROM + 0.7, num_boundary_points=2)[0],
    1e-3,
)

# Layers.
for pooling, size in (("1D", 3), ("2D", (3, 2)), ("3D", (3, 2, 2))):
    maps = _normal(2, 6, *(4, 4)[: len(pooling) and int(pooling[0]) - 1], 3)
    for kind in ("Average", "Max"):
        layer = f"Adaptive{kind}Pooling{pooling}"
        case(
            f"layers.{layer}",
            lambda a, n=layer, s=size, m=maps: getattr(a.layers, n)(s)(m),
            lambda n=layer, s=size, m=maps: getattr(keras().layers, n)(s)(m),
        )
MAPS = _normal(2, 6, 4, 6)
for layer, options in (("GroupNormalization", {"groups": 3}), ("InstanceNormalization", {})):
    case(
        f"layers.{layer}",
        lambda a, n=layer, o=options: getattr(a.layers, n)(**o)(MAPS),
        lambda o=options: keras().layers.GroupNormalization(**(o or {"groups": -1}))(MAPS),
    )
POOLED, WHERE = tf.nn.max_pool_with_argmax(MAPS, 2, 2, "SAME")
for padding in ("SAME", "VALID"):
    case(
        f"layers.MaxUnpooling2D {padding}",
        lambda a, p=padding: a.layers.MaxUnpooling2D(padding=p)(POOLED, WHERE),
        lambda p=padding: recipe("layers").max_unpooling_2d(POOLED, WHERE, padding=p),
    )
case(
    "layers.MaxUnpooling2DV2",
    lambda a: a.layers.MaxUnpooling2DV2((2, 6, 4, 6))(POOLED, WHERE),
    lambda: recipe("layers").max_unpooling_2d_v2(POOLED, WHERE, (2, 6, 4, 6)),
)
for axis in (-1, 1):
    case(
        f"layers.Maxout {axis}",
        lambda a, x=axis: a.layers.Maxout(2, axis=x)(MAPS),
        lambda x=axis: recipe("layers").maxout(tf.constant(MAPS), 2, x),
    )
case(
    "layers.PoincareNormalize",
    lambda a: a.layers.PoincareNormalize()(X),
    lambda: recipe("layers").poincare_normalize(X),
)
case(
    "layers.SpatialPyramidPooling2D",
    lambda a: a.layers.SpatialPyramidPooling2D([[1, 1], [2, 3], [4, 4]])(MAPS),
    lambda: recipe("layers").spatial_pyramid_pooling_2d(MAPS, [[1, 1], [2, 3], [4, 4]]),
)
case("layers.Sparsemax", lambda a: a.layers.Sparsemax()(X), lambda: recipe("activations").sparsemax(X))
case(
    "layers.StochasticDepth",
    lambda a: a.layers.StochasticDepth(0.3)([tf.constant(X), tf.constant(X * X)]),
    lambda: recipe("layers").stochastic_depth(X, X * X, 0.3),
)


def _with_weights(layer: Any, inputs: Any) -> Any:
    """What a layer gives with weights drawn in the order of their names' roles (all of one kind here)."""
    layer(inputs)
    random = np.random.default_rng(3)
    layer.set_weights([random.normal(size=weight.shape).astype(np.float32) + 0.5 for weight in layer.weights])
    return layer(inputs)


for layer, options, inputs in (
    ("FilterResponseNormalization", {}, MAPS),
    ("PolynomialCrossing", {"diag_scale": 0.2}, [tf.constant(VECTORS), tf.constant(VECTORS[::-1])]),
    ("Snake", {}, X),
    ("TLU", {}, X),
    ("TLU", {"affine": True}, X),
):
    case(
        f"layers.{layer}{' affine' if options.get('affine') else ''}",
        lambda a, n=layer, o=options, x=inputs: _with_weights(getattr(a.layers, n)(**o), x),
        lambda n=layer, o=options, x=inputs: _with_weights(getattr(recipe("layers"), n)(**o), x),
    )
