"""Activations, losses, metrics."""

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
