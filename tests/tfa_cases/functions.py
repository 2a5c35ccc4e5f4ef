"""Activations, losses, metrics, images, layers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfa_cases import case, keras, recipe

_RANDOM = np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray:
    return _RANDOM.normal(size=shape).astype(np.float32)


# Activations.
X = _normal(3, 7) * 2
POSITIVE = np.abs(X) + 0.1
case("activations.gelu", lambda a: a.activations.gelu(X), lambda: tf.nn.gelu(X, approximate=True))
case("activations.hardshrink", lambda a: a.activations.hardshrink(X), lambda: keras().activations.hard_shrink(X))
case("activations.lisht", lambda a: a.activations.lisht(X), lambda: recipe("activations").lisht(X))
case("activations.mish", lambda a: a.activations.mish(X), lambda: keras().activations.mish(X))
case("activations.softshrink", lambda a: a.activations.softshrink(X), lambda: keras().activations.soft_shrink(X))
case("activations.rrelu", lambda a: a.activations.rrelu(X), lambda: recipe("activations").rrelu(X))
case("activations.snake", lambda a: a.activations.snake(X, 2.0), lambda: recipe("activations").snake(X, 2.0))
case("activations.sparsemax", lambda a: a.activations.sparsemax(X), lambda: recipe("activations").sparsemax(X))
case("activations.tanhshrink", lambda a: a.activations.tanhshrink(X), lambda: keras().activations.tanh_shrink(X))
case("layers.GELU", lambda a: a.layers.GELU()(X), lambda: keras().layers.Activation("gelu")(X), 1e-3)

# Losses.
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 0], np.int32)
VECTORS = _normal(8, 4)
BINARY = (_normal(5, 6) > 0).astype(np.float32)
CHANCES = 1 / (1 + np.exp(-_normal(5, 6)))
BOXES = [np.concatenate([low, low + np.abs(_normal(4, 2))], 1) for low in (_normal(4, 2), _normal(4, 2))]
SQUARE = _normal(8, 8)
ONE_HOT = np.eye(4, dtype=np.float32)[_RANDOM.integers(0, 4, 9)]
SOFT = np.exp(_normal(9, 4))
SOFT /= SOFT.sum(1, keepdims=True)


def _loss(name: str, *arguments: Any, **options: Any) -> None:
    variant = f" {' '.join(map(str, options.values()))}" if options else ""
    function = getattr_of(f"losses.{name}")
    case(
        f"losses.{name}{variant}",
        lambda a: function(a)(*arguments, **options),
        lambda: getattr(recipe("losses"), name)(*arguments, **options),
    )


def getattr_of(path: str) -> Callable[[Any], Any]:
    def find(root: Any) -> Any:
        for name in path.split("."):
            root = getattr(root, name)
        return root

    return find


_loss("contrastive_loss", BINARY[0], CHANCES[0], margin=0.7)
for mode in ("giou", "iou"):
    _loss("giou_loss", BOXES[0], BOXES[1], mode=mode)
_loss("lifted_struct_loss", LABELS, tf.constant(VECTORS), margin=1.5)
for metric in ("L2", "squared-L2", "angular"):
    _loss("triplet_semihard_loss", LABELS, VECTORS, margin=0.5, distance_metric=metric)
    _loss("triplet_hard_loss", LABELS, VECTORS, margin=0.5, distance_metric=metric)
_loss("triplet_hard_loss", LABELS, VECTORS, soft=True)
_loss("npairs_loss", LABELS, SQUARE)
_loss("npairs_multilabel_loss", (_normal(8, 5) > 0).astype(np.float32) + np.eye(8, 5, dtype=np.float32), SQUARE)
_loss("pinball_loss", BINARY, CHANCES, tau=0.2)
case(
    "losses.sigmoid_focal_crossentropy",
    lambda a: a.losses.sigmoid_focal_crossentropy(BINARY, CHANCES),
    lambda: 6 * keras().losses.binary_focal_crossentropy(BINARY, CHANCES, apply_class_balancing=True),
)
case(
    "losses.SigmoidFocalCrossEntropy",
    lambda a: a.losses.SigmoidFocalCrossEntropy(from_logits=True)(BINARY, X[:1, :6] * np.ones([5, 1], np.float32)),
    lambda: (
        6
        * keras().losses.BinaryFocalCrossentropy(apply_class_balancing=True, from_logits=True, reduction="none")(
            BINARY, X[:1, :6] * np.ones([5, 1], np.float32)
        )
    ),
)
case(
    "losses.sparsemax_loss",
    lambda a: a.losses.sparsemax_loss(SQUARE, a.activations.sparsemax(SQUARE), np.eye(8, dtype=np.float32)),
    lambda: recipe("losses").sparsemax_loss(
        SQUARE, recipe("activations").sparsemax(SQUARE), np.eye(8, dtype=np.float32)
    ),
)
for weightage in ("linear", "quadratic"):
    case(
        f"losses.WeightedKappaLoss {weightage}",
        lambda a, w=weightage: a.losses.WeightedKappaLoss(num_classes=4, weightage=w)(ONE_HOT, SOFT),
        lambda w=weightage: recipe("losses").weighted_kappa_loss(ONE_HOT, SOFT, w),
    )
# The classes' reductions.
for name, function, arguments in (
    ("ContrastiveLoss", "contrastive_loss", (BINARY[0], CHANCES[0])),
    ("GIoULoss", "giou_loss", tuple(BOXES)),
    ("PinballLoss", "pinball_loss", (BINARY, CHANCES)),
    ("TripletSemiHardLoss", "triplet_semihard_loss", (LABELS, VECTORS)),
    ("TripletHardLoss", "triplet_hard_loss", (LABELS, VECTORS)),
    ("LiftedStructLoss", "lifted_struct_loss", (LABELS, tf.constant(VECTORS))),
    ("NpairsLoss", "npairs_loss", (LABELS, SQUARE)),
    (
        "NpairsMultilabelLoss",
        "npairs_multilabel_loss",
        (np.eye(8, 5, dtype=np.float32) + np.eye(8, 5, -4, dtype=np.float32), SQUARE),
    ),
):
    case(
        f"losses.{name}",
        lambda a, n=name, x=arguments: getattr(a.losses, n)()(*x),
        lambda f=function, x=arguments: tf.reduce_mean(getattr(recipe("losses"), f)(*x)),
    )
case(
    "losses.SparsemaxLoss",
    lambda a: a.losses.SparsemaxLoss()(np.eye(8, dtype=np.float32), SQUARE),
    lambda: tf.reduce_mean(
        recipe("losses").sparsemax_loss(SQUARE, recipe("activations").sparsemax(SQUARE), np.eye(8, dtype=np.float32))
    ),
)

# Metrics.
TRUE, PREDICTED = _RANDOM.integers(0, 4, 40), _RANDOM.integers(0, 4, 40)
PREDICTED = np.where(_RANDOM.random(40) < 0.5, TRUE, PREDICTED)


def _result(metric: Any, *arguments: Any, **options: Any) -> Any:
    metric.update_state(*arguments, **options)
    return metric.result()


def _confusion() -> Any:
    return tf.math.confusion_matrix(TRUE, PREDICTED, 4)


ROWS, CHOSEN = np.eye(4, dtype=np.float32)[TRUE], np.eye(4, dtype=np.float32)[PREDICTED]
for weighting in (None, "linear", "quadratic"):
    case(
        f"metrics.CohenKappa {weighting}",
        lambda a, w=weighting: _result(
            a.metrics.CohenKappa(num_classes=4, weightage=w, sparse_labels=True), TRUE, PREDICTED
        ),
        lambda w=weighting: recipe("metrics").cohen_kappa(_confusion(), w),
    )
case(
    "metrics.MatthewsCorrelationCoefficient",
    lambda a: _result(a.metrics.MatthewsCorrelationCoefficient(num_classes=4), ROWS, CHOSEN),
    lambda: recipe("metrics").matthews_correlation_coefficient(_confusion()),
)
MANY, GUESSED = (_normal(20, 3) > 0).astype(np.int32), (_normal(20, 3) > 0).astype(np.int32)
case(
    "metrics.MultiLabelConfusionMatrix",
    lambda a: _result(a.metrics.MultiLabelConfusionMatrix(num_classes=3), MANY, GUESSED),
    lambda: recipe("metrics").multi_label_confusion_matrix(MANY, GUESSED),
)
case(
    "metrics.F1Score",
    lambda a: _result(a.metrics.F1Score(num_classes=4, threshold=0.5), ROWS, CHOSEN),
    lambda: _result(keras().metrics.F1Score(threshold=0.5), ROWS, CHOSEN),
)
case(
    "metrics.FBetaScore",
    lambda a: _result(a.metrics.FBetaScore(num_classes=4, average="macro", beta=2.0), ROWS, CHOSEN),
    lambda: _result(keras().metrics.FBetaScore(average="macro", beta=2.0), ROWS, CHOSEN),
)
case(
    "metrics.hamming_distance",
    lambda a: a.metrics.hamming_distance(TRUE, PREDICTED),
    lambda: recipe("metrics").hamming_distance(TRUE, PREDICTED),
)
for kind, limit in (("multiclass", None), ("multilabel", 0.5)):
    case(
        f"metrics.hamming_loss_fn {kind}",
        lambda a, k=kind, t=limit: a.metrics.hamming_loss_fn(tf.constant(ROWS), tf.constant(CHOSEN), t, k),
        lambda k=kind, t=limit: recipe("metrics").hamming_loss_fn(ROWS, CHOSEN, t, k),
    )
case(
    "metrics.HammingLoss",
    lambda a: _result(a.metrics.HammingLoss(mode="multilabel", threshold=0.5), tf.constant(ROWS), tf.constant(CHOSEN)),
    lambda: tf.reduce_mean(recipe("metrics").hamming_loss_fn(ROWS, CHOSEN, 0.5)),
)
case(
    "metrics.MeanMetricWrapper",
    lambda a: _result(a.metrics.MeanMetricWrapper(lambda x, y: x * y), X, X),
    lambda: _result(keras().metrics.MeanMetricWrapper(lambda x, y: x * y), X, X),
)
case(
    "metrics.RSquare",
    lambda a: _result(a.metrics.RSquare(), tf.constant(VECTORS), tf.constant(VECTORS * 0.9)),
    lambda: _result(keras().metrics.R2Score(), VECTORS, VECTORS * 0.9),
)
case(
    "metrics.GeometricMean",
    lambda a: _result(a.metrics.GeometricMean(), POSITIVE),
    lambda: recipe("metrics").geometric_mean(POSITIVE),
)
case(
    "metrics.HarmonicMean",
    lambda a: _result(a.metrics.HarmonicMean(), POSITIVE),
    lambda: recipe("metrics").harmonic_mean(POSITIVE),
)
RANKS = np.linspace(0.005, 0.995, 60, dtype=np.float32)  # no two in one of the 99 bins
OTHERS = _RANDOM.permutation(RANKS)
for symbol in ("KendallsTauB", "KendallsTauC", "SpearmansRank"):
    snake = {"KendallsTauB": "kendalls_tau_b", "KendallsTauC": "kendalls_tau_c", "SpearmansRank": "spearmans_rank"}[
        symbol
    ]
    case(
        f"metrics.{symbol}",
        lambda a, s=symbol: _result(getattr(a.metrics, s)(), RANKS, OTHERS),
        lambda s=snake: getattr(recipe("metrics"), s)(RANKS, OTHERS),
    )
case(
    "metrics.PearsonsCorrelation",
    lambda a: _result(a.metrics.PearsonsCorrelation(), RANKS, OTHERS),
    lambda: _result(keras().metrics.PearsonCorrelation(), RANKS[None], OTHERS[None]),
    1e-2,
)

# Images.
BATCH = _RANDOM.random((2, 9, 7, 3)).astype(np.float32)
BYTES = _RANDOM.integers(0, 256, (9, 7, 3)).astype(np.uint8)
POINTS, QUERIES = _normal(2, 6, 2), _normal(2, 5, 2)


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
for order in (1, 2, 3):
    _image(
        "interpolate_spline",
        POINTS,
        POINTS[:, :, :1],
        QUERIES,
        order,
        regularization_weight=0.1 * order,
        tolerance=1e-3,
    )
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
