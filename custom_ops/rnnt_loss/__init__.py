"""The transducer's loss (RNN-T): of labels without a place, each of which may depend on those before it.

.. math:: \\mathrm{loss} = -\\log \\sum_{ways} \\prod_{(t, u) \\to (t + 1, u)} y(t, u, blank)
   \\prod_{(t, u) \\to (t, u + 1)} y(t, u, label_u), \\qquad y(t, u, \\cdot) = \\mathrm{softmax}(logits_{tu})

over all ways through frames and labels (Graves 2012, https://arxiv.org/abs/1211.3711). With ``fastemit`` lambda the
gradient by the logarithms of labels' probabilities, and not by those of blanks, is 1 + lambda times as large (FastEmit,
Yu et al. 2021, https://arxiv.org/abs/2010.11148), so that labels come sooner; the loss stays the same.

``TfToolkit>RnntLoss`` takes the joint tensor of logits. ``TfToolkit>RnntLossAdditive`` takes an encoder's and a
predictor's logits, whose sums the joint tensor would hold, and computes the sums over classes by products of matrices
of exponentials, as the simple loss of k2 (Kuang et al. 2022, https://arxiv.org/abs/2206.13236). Both compute in
float32.
"""

from __future__ import annotations

from typing import Any

from tftoolkit.custom_ops.engine import library

_library = library.load_builtin("rnnt_loss")
_forward = _library.op("RnntLoss")
_backward = _library.op("RnntLossGrad")
_forward_additive = _library.op("RnntLossAdditive")
_backward_additive = _library.op("RnntLossAdditiveGrad")


def rnnt_loss(
    logits: Any,
    labels: Any,
    logit_lengths: Any,
    label_lengths: Any,
    *,
    blank: int = 0,
    fastemit: float = 0.0,
    name: str | None = None,
) -> Any:
    """The loss of each sequence; average them as you like.

    Args:
      logits: [batch, time, labels + 1, classes], before any softmax: at each frame, behind each number of labels;
        float32, bfloat16 or float16. May hold minus infinity. Of this size there is the gradient and nothing else.
      labels: int32 or int64 [batch, labels], padded with anything. Classes other than the blank.
      logit_lengths: int32 or int64 [batch]: how many frames of each sequence there are, 0 … time. What stands behind
        them is not looked at.
      label_lengths: int32 or int64 [batch]: how many labels of each sequence there are.
      blank: the class of the blank.
      fastemit: lambda of FastEmit; not negative.

    Returns:
      float32 [batch]; infinite where no way is possible (there are labels but no frames, or classes are masked), and
      0 without labels and frames. Differentiable to any order by logits (from the second by the plain computation). The
      gradient of an infinite loss is zero; NaN, plus infinity, or nothing but minus infinity in a cell of a sequence
      makes its loss and its whole gradient NaN. The same bits for any number of threads.

    Raises:
      tf.errors.InvalidArgumentError: a label is no class or the blank, a length is negative or beyond its bound, blank
        is no class, or shapes that do not fit together. On a GPU, where plain TensorFlow runs, labels and lengths are
        not refused: the loss and the gradient of the sequence are NaN.
      ValueError: fastemit is negative.
    """
    options = {"blank": blank, "fastemit": _checked(fastemit)}
    return _forward(logits, labels, logit_lengths, label_lengths, **options, name=name).loss


def rnnt_loss_additive(
    encoder: Any,
    predictor: Any,
    labels: Any,
    logit_lengths: Any,
    label_lengths: Any,
    *,
    blank: int = 0,
    fastemit: float = 0.0,
    name: str | None = None,
) -> Any:
    """``rnnt_loss`` of the logits ``encoder[:, :, None] + predictor[:, None]``, which are never formed.

    Args:
      encoder: [batch, time, classes]; float32, bfloat16 or float16.
      predictor: [batch, labels + 1, classes], of encoder's dtype: before the first label, behind each label.
      labels, logit_lengths, label_lengths, blank, fastemit: as of ``rnnt_loss``.

    Returns:
      As ``rnnt_loss``; differentiable by encoder and predictor. Memory grows with time * labels and with classes, not
      with their product. (Cells where both are large at classes so different that less than e^-50 of their product is
      left cost an exponential for each class, as of a joint tensor.)

    Raises:
      tf.errors.InvalidArgumentError, ValueError: as of ``rnnt_loss``.
    """
    options = {"blank": blank, "fastemit": _checked(fastemit)}
    return _forward_additive(encoder, predictor, labels, logit_lengths, label_lengths, **options, name=name).loss


def _checked(fastemit: float) -> float:
    if not 0 <= fastemit < float("inf"):
        raise ValueError(f"fastemit must not be negative, got {fastemit}")
    return float(fastemit)


def _options(op: Any) -> dict[str, Any]:
    return {name: op.get_attr(name) for name in ("blank", "fastemit")}


@_forward.reference
def _(logits: Any, labels: Any, logit_lengths: Any, label_lengths: Any, *, blank: int, fastemit: float) -> Any:
    from tftoolkit.custom_ops.rnnt_loss import plain

    return plain.losses(plain.Cells(labels, logit_lengths, label_lengths, logits, blank, fastemit), logits)


@_forward.gradient
def _(op: Any, d_loss: Any, d_max: Any, d_sum: Any) -> Any:
    """The maximum is a constant: losses do not depend on which one is taken."""
    _, largest, total = op.outputs
    return _backward(*op.inputs, d_loss, d_sum, largest, total, **_options(op)), None, None, None


@_backward.reference
def _(
    logits: Any, labels: Any, logit_lengths: Any, label_lengths: Any, d_loss: Any, d_sum: Any, largest: Any, total: Any,
    *, blank: int, fastemit: float,
) -> Any:  # fmt: skip
    from tftoolkit.custom_ops.rnnt_loss import plain

    cells = plain.Cells(labels, logit_lengths, label_lengths, logits, blank, fastemit)
    return plain.gradient(cells, logits, d_loss, d_sum, largest, total)


@_forward_additive.reference
def _(
    encoder: Any, predictor: Any, labels: Any, logit_lengths: Any, label_lengths: Any, *, blank: int, fastemit: float
) -> Any:
    from tftoolkit.custom_ops.rnnt_loss import plain

    cells = plain.Cells(labels, logit_lengths, label_lengths, encoder, blank, fastemit)
    return plain.additive_losses(cells, encoder, predictor)


@_forward_additive.gradient
def _(op: Any, d_loss: Any, d_log_sum: Any) -> Any:
    found = _backward_additive(*op.inputs, d_loss, d_log_sum, op.outputs[1], **_options(op))
    return found.d_encoder, found.d_predictor, None, None, None


@_backward_additive.reference
def _(
    encoder: Any, predictor: Any, labels: Any, logit_lengths: Any, label_lengths: Any, d_loss: Any, d_log_sum: Any,
    log_sum: Any, *, blank: int, fastemit: float,
) -> Any:  # fmt: skip
    from tftoolkit.custom_ops.rnnt_loss import plain

    cells = plain.Cells(labels, logit_lengths, label_lengths, encoder, blank, fastemit)
    return plain.additive_gradients(cells, encoder, predictor, d_loss, d_log_sum, log_sum)


_backward.differentiate_reference()
_backward_additive.differentiate_reference()
