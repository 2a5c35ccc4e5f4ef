"""Connectionist temporal classification: the loss of labels without a place, with the softmax in it.

.. math:: \\mathrm{loss} = -\\log \\sum_{\\pi \\in \\mathcal{B}^{-1}(labels)} \\prod_t y(t, \\pi_t), \\qquad
   y(t, \\cdot) = \\mathrm{softmax}(logits_t)

over all ways to give a class to every frame from which the labels remain when first repetitions and then blanks are
taken out (Graves et al. 2006, https://www.cs.toronto.edu/~graves/icml_2006.pdf). The gradient, by the same paper's
forward and backward sums alpha and beta over states s, is

.. math:: \\frac{\\partial\\,\\mathrm{loss}}{\\partial\\,logits_{tc}} = y(t, c)
   - \\frac{\\sum_{s: s\\text{ is of class }c} \\alpha(t, s)\\, \\beta(t, s)}{\\sum_s \\alpha(t, s)\\, \\beta(t, s)}

``TfToolkit>CtcLoss`` returns, beside the losses, the largest logit m of each frame and the sum of e^(x - m), from which
``TfToolkit>CtcLossGrad`` makes the gradient: probabilities are never stored. Both compute in float32 whatever the
logits are, with exponents of their own (``tftoolkit/wide_numbers.h``), so that no length is too large.
"""

from __future__ import annotations

from typing import Any

from tftoolkit.custom_ops.engine import library

_library = library.load_builtin("ctc_loss")
_forward = _library.op("CtcLoss")
_backward = _library.op("CtcLossGrad")


def ctc_loss(
    logits: Any,
    labels: Any,
    logit_lengths: Any,
    label_lengths: Any = None,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    name: str | None = None,
) -> Any:
    """The loss of each sequence; average them as you like, over ``label_lengths``, say.

    Args:
      logits: [batch, time, classes]; float32, bfloat16 or float16, before any softmax. May hold minus infinity.
      labels: int32 or int64: [batch, labels], padded with anything; or [values], the labels of all sequences one behind
        the other, in the order of the batch; or a tf.RaggedTensor [batch, None]. Classes other than the blank.
      logit_lengths: int32 or int64 [batch]: how many frames of each sequence there are, 0 … time. What stands behind
        them is not looked at.
      label_lengths: int32 or int64 [batch]: how many labels of each sequence there are. None with a tf.RaggedTensor.
        (Of row splits: ``splits[1:] - splits[:-1]``.)
      blank: the class of the blank.
      zero_infinity: a loss that is infinite, since no way leads to the labels (there are too few frames for them, or
        their classes are masked), becomes 0.

    Returns:
      float32 [batch]. Differentiable to any order by logits (from the second by the plain computation). The gradient of
      an infinite loss is zero, with and without ``zero_infinity``; NaN, plus infinity, or nothing but minus infinity
      among a frame's logits makes the sequence's loss and its whole gradient NaN. The same bits for any number of
      threads.

    Raises:
      tf.errors.InvalidArgumentError: a label is no class or the blank, a length is negative or beyond its bound, blank
        is no class, or shapes that do not fit together. On a GPU labels and lengths are not refused, since that would
        make the host wait: there, the loss and the gradient of the sequence are NaN.
      TypeError: label_lengths is missing, or was given with a tf.RaggedTensor.
    """
    if hasattr(labels, "row_lengths"):
        if label_lengths is not None:
            raise TypeError("label_lengths must be None, since labels is a tf.RaggedTensor, which has them")
        labels, label_lengths = labels.values, labels.row_lengths()
    elif label_lengths is None:
        raise TypeError("label_lengths may be left out with a tf.RaggedTensor of labels only")
    return _forward(
        logits, labels, logit_lengths, label_lengths, blank=blank, zero_infinity=zero_infinity, name=name
    ).loss


@_forward.reference
def _(logits: Any, labels: Any, logit_lengths: Any, label_lengths: Any, *, blank: int, zero_infinity: bool) -> Any:
    from tftoolkit.custom_ops.ctc_loss import plain

    return plain.losses(plain.Labels(logits, labels, logit_lengths, label_lengths, blank), logits, zero_infinity)


@_forward.gradient
def _(op: Any, d_loss: Any, d_max: Any, d_sum: Any) -> Any:
    """The maximum is a constant: losses do not depend on which one is taken."""
    _, largest, total = op.outputs
    return _backward(*op.inputs, d_loss, d_sum, largest, total, blank=op.get_attr("blank")), None, None, None


@_backward.reference
def _(
    logits: Any, labels: Any, logit_lengths: Any, label_lengths: Any, d_loss: Any, d_sum: Any, largest: Any, total: Any,
    *, blank: int,
) -> Any:  # fmt: skip
    from tftoolkit.custom_ops.ctc_loss import plain

    given = plain.Labels(logits, labels, logit_lengths, label_lengths, blank)
    return plain.gradient(given, logits, d_loss, d_sum, largest, total)


_backward.differentiate_reference()
