"""Cross-entropy of a linear layer in NumPy and float64, and how close to it fused_linear_cross_entropy must be."""

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import library
from tftoolkit.custom_ops.fused_linear_cross_entropy.cases import Case

assert custom_ops.fused_linear_cross_entropy  # attaches reference and gradient
FORWARD = library.load_builtin("fused_linear_cross_entropy").op("FusedLinearCrossEntropy")
MODES = {
    "eager": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, jit_compile=True, autograph=False),
}
NO_OPTIONS = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, "logit_softcap": 0.0}


def given(case: Case, magnitude: float = 1):
    """inputs, weight and perhaps a bias, float32 that the case's dtype holds; labels; perhaps class weights."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return tf.cast(tf.cast(rng.standard_normal(shape), case.dtype), tf.float32).numpy()

    tensors = [draw(*case.shape) * np.float32(magnitude), draw(case.classes, case.depth)]
    tensors += [draw(case.classes)] if case.bias else []
    ignored = dict(case.options).get("ignore_index", -100)
    labels = np.where(rng.random(case.rows) < 0.25, ignored, rng.integers(0, case.classes, case.rows))
    return tensors, labels.astype(np.int32), rng.random(case.classes).astype(np.float32) if case.class_weight else None


def float64(case: Case, tensors, labels, class_weight, d_loss, d_lse=0.0):
    """Losses, log-sum-exps and the gradients by all tensors: the formulas of the kernel's header, in NumPy."""
    options = NO_OPTIONS | dict(case.options)
    smoothing, z_loss, cap = options["label_smoothing"], options["z_loss"], options["logit_softcap"]
    inputs, weight, *bias = (x.astype(np.float64) for x in tensors)
    inputs = inputs.reshape(int(np.prod(case.rows)), case.depth)
    labels, d_loss, d_lse = (np.broadcast_to(x, case.rows).ravel() for x in (labels, d_loss, d_lse))
    counts = labels != options["ignore_index"]
    x = inputs @ weight.T + (bias[0] if bias else 0)
    slope = 1.0
    if cap:
        x = cap * np.tanh(x / cap)
        slope = 1 - (x / cap) ** 2
    top = x.max(-1, keepdims=True)
    lse = top + np.log(np.exp(x - top).sum(-1, keepdims=True))
    w = np.ones(case.classes) if class_weight is None else class_weight.astype(np.float64)
    own = (labels[:, None] == np.arange(case.classes)) * w * (1 - smoothing)
    target = own + smoothing / case.classes * w
    loss = np.where(counts, (target * (lse - x)).sum(-1) + z_loss * lse[:, 0] ** 2, 0)
    every = d_loss * (target.sum(-1) + 2 * z_loss * lse[:, 0]) + d_lse
    dx = (np.exp(x - lse) * every[:, None] - d_loss[:, None] * target) * slope * counts[:, None]
    gradients = [(dx @ weight).reshape(case.shape), dx.T @ inputs, *([dx.sum(0)] if bias else [])]
    return [loss.reshape(case.rows), np.where(counts, lse[:, 0], 0).reshape(case.rows), *gradients]


def fused(case: Case, labels, class_weight, **more):
    def call(inputs, weight, bias=None):
        options = dict(case.options) | more
        return custom_ops.fused_linear_cross_entropy(
            labels, inputs, weight, bias, class_weight=class_weight, **options
        )  # fmt: skip

    return call


def plain(case: Case, labels, class_weight):
    def call(inputs, weight, bias=None):
        found = FORWARD.run_reference(inputs, weight, bias, labels, class_weight, **NO_OPTIONS | dict(case.options))
        return found.loss, found.lse

    return call


def run(function, case: Case, tensors, upstream, mode="eager"):
    """What the function gives, and the gradients by the tensors."""

    def both(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            found = tf.nest.flatten(function(*tensors))
        return [*found, *tape.gradient(found, tensors, output_gradients=[tf.constant(x) for x in upstream])]

    found = MODES[mode](both)(*(tf.cast(x, case.dtype) for x in tensors))
    assert [x.dtype for x in found] == [tf.float32] * len(upstream) + [tf.as_dtype(case.dtype)] * len(tensors)
    return [tf.cast(x, tf.float32).numpy() for x in found]


def assert_as_good_as(actual, naive, exact, dtype):
    """At most 3 times the largest error of the plain computation and 1.5 times its rms error (those of a few numbers
    scatter more), beside one rounding when the result is stored, and some of the largest number in float32."""
    stored = {"float32": 0, "bfloat16": 2.0**-8, "float16": 2.0**-10}[dtype]
    for one, plain_one, right in zip(actual, naive, exact, strict=True):
        assert one.shape == right.shape
        if not right.size:
            continue
        error, allowed = np.abs(one - right), np.abs(plain_one - right)
        largest = np.abs(right).max()
        assert error.max() <= 3 * allowed.max() + (2.0**-21 + stored) * largest
        assert np.sqrt(np.mean(error**2)) <= 1.5 * np.sqrt(np.mean(allowed**2)) + (2.0**-22 + stored / 8) * largest
