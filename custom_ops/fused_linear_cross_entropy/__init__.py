"""The last layer of a language model and its loss in one: logits are never held as a whole.

.. math:: x = \\mathrm{inputs}\\, \\mathrm{weight}^T + \\mathrm{bias}, \\quad
   \\mathrm{lse} = \\log \\sum_c e^{x_c}, \\qquad
   \\mathrm{loss} = (1 - s)\\, w_l (\\mathrm{lse} - x_l) + \\tfrac{s}{V} \\sum_c w_c (\\mathrm{lse} - x_c)
   + z \\cdot \\mathrm{lse}^2

with label l, class weights w, label smoothing s (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567), z-loss z
(PaLM, Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311) and, if wanted, x capped by ``c * tanh(x / c)``
(Gemma 2, https://arxiv.org/abs/2408.00118). That loss and gradients may be computed together, chunk by chunk, is from
Liger Kernel (Hsu et al. 2024, https://arxiv.org/abs/2410.10989).

``TfToolkit>FusedLinearCrossEntropy`` computes losses, ``TfToolkit>FusedLinearCrossEntropyGrad`` the gradients and, on
the way, the sum of the losses; both in float32 whatever they load and store.
"""

from __future__ import annotations

import numbers
import sys
from typing import Any

from tftoolkit.custom_ops.engine import library, ops

_library = library.load_builtin("fused_linear_cross_entropy")
_forward = _library.op("FusedLinearCrossEntropy")
_backward = _library.op("FusedLinearCrossEntropyGrad")


def fused_linear_cross_entropy(
    labels: Any,
    inputs: Any,
    weight: Any,
    bias: Any = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    class_weight: Any = None,
    reduction: str = "mean",
    return_lse: bool = False,
    name: str | None = None,
) -> Any:
    """The cross-entropy of ``softmax(inputs @ transpose(weight) + bias)``.

    Where a gradient tape may be recording, a mean or sum is computed together with its gradients, at the cost of three
    products; a loss alone costs one, gradients of it afterwards three more.

    Args:
      labels: [...], int32 or int64: the class of each token, 0 … classes - 1, or ignore_index.
      inputs: [..., depth]; float32, bfloat16 or float16.
      weight: [classes, depth], of inputs' dtype, as an embedding is kept. Best for thousands of classes and more.
      bias: [classes], of inputs' dtype; None for nothing. Minus infinity takes a class out.
      ignore_index: the label of tokens that do not count: no loss, no gradient, whatever they hold, and no time.
      label_smoothing: what part of the target is spread over all classes, at least 0 and less than 1.
      z_loss: the weight of log(sum(exp(logits)))^2, which keeps logits from drifting; not negative.
      logit_softcap: logits become ``c * tanh(logits / c)``; positive, or None.
      class_weight: float32 [classes], by which terms of the loss are multiplied, as in PyTorch; without a gradient.
      reduction: "mean": the sum of the losses over the sum of the class weights of all labels that count (without
        class_weight, over their number), 0 if there are none; "sum"; or "none": the loss of each token.
      return_lse: return the log-sum-exp of each token as well.

    Returns:
      float32: a scalar, or [...] for reduction "none". With return_lse a pair of it and float32 [...], 0 where the
      label is ignored. Differentiable to any order by inputs, weight and bias; second derivatives hold all logits.

    Raises:
      tf.errors.InvalidArgumentError: a label is neither a class nor ignore_index, or shapes that do not fit.
      ValueError: label_smoothing, z_loss, logit_softcap or reduction is out of range.
      TypeError: one of them is no number.
    """
    options = _options(ignore_index, label_smoothing, z_loss, logit_softcap)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if reduction != "none" and not return_lse and not _in_jax(labels, inputs, weight, bias):
        from tftoolkit.custom_ops.engine import tf_host

        if tf_host.may_record_gradients():
            from tftoolkit.custom_ops.fused_linear_cross_entropy import plain

            return plain.with_gradients(
                _backward, labels, inputs, weight, bias, class_weight, mean=reduction == "mean", **options
            )
    loss, lse, total, total_weight = _forward(inputs, weight, bias, labels, class_weight, **options, name=name)
    loss = {"none": lambda: loss, "sum": lambda: total, "mean": lambda: total / total_weight}[reduction]()
    return (loss, lse) if return_lse else loss


def _options(ignore_index: Any, label_smoothing: Any, z_loss: Any, logit_softcap: Any) -> dict[str, Any]:
    numbers_given = {"label_smoothing": label_smoothing, "z_loss": z_loss, "logit_softcap": logit_softcap or 0.0}
    for label, value in numbers_given.items():
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{label} must be a number, got {value!r}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}")
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss must not be negative, got {z_loss}")
    if logit_softcap is not None and not 0 < logit_softcap < float("inf"):
        raise ValueError(f"logit_softcap must be positive, or None, got {logit_softcap}")
    return {"ignore_index": ignore_index, **{label: float(value) for label, value in numbers_given.items()}}


def _in_jax(*inputs: Any) -> bool:
    return "jax" in sys.modules and ops.is_jax(inputs)


_ATTRIBUTES = ("ignore_index", "label_smoothing", "z_loss", "logit_softcap")


@_forward.reference
def _(inputs: Any, weight: Any, bias: Any, labels: Any, class_weight: Any, **options: Any) -> Any:
    from tftoolkit.custom_ops.fused_linear_cross_entropy import plain

    return plain.losses(inputs, weight, bias, labels, class_weight, **options)


@_forward.gradient
def _(op: Any, d_loss: Any, d_lse: Any, d_total: Any, _: Any) -> Any:
    inputs, weight, bias, labels, class_weight = op.inputs
    biased = op.get_attr("has_bias")
    found = _backward(
        *(inputs, weight, bias, labels, class_weight if op.get_attr("has_class_weight") else None),
        *(d_loss + d_total, d_lse),
        **{name: op.get_attr(name) for name in _ATTRIBUTES},
        biased=biased,
        has_dbias=biased,
    )
    return found.dinputs, found.dweight, found.dbias, None, None


@_backward.reference
def _(
    inputs: Any, weight: Any, bias: Any, labels: Any, class_weight: Any, d_loss: Any, d_lse: Any, *, biased: bool,
    has_dbias: bool, **options: Any,
) -> Any:  # fmt: skip
    from tftoolkit.custom_ops.fused_linear_cross_entropy import plain

    found = plain.gradients(inputs, weight, bias if biased else None, labels, class_weight, d_loss, d_lse, **options)
    dinputs, dweight, dbias, total = found
    return dinputs, dweight, dbias if has_dbias else None, total


_backward.differentiate_reference()
