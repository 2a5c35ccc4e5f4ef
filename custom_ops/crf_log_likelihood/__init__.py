"""Linear-chain conditional random fields (Lafferty, McCallum & Pereira 2001,
https://repository.upenn.edu/cis_papers/159): likelihoods, best paths, marginals.

.. math:: \\mathrm{score}(y) = s_{y_0} + \\sum_t x_{t, y_t} + \\sum_{t > 0} A_{y_{t-1}, y_t} + e_{y_{T-1}} \\qquad
   \\log p(y) = \\mathrm{score}(y) - \\log \\sum_{y'} e^{\\mathrm{score}(y')}

Ops ``TfToolkit>CrfLogLikelihood``, ``TfToolkit>CrfLogLikelihoodGrad``, ``TfToolkit>CrfDecode`` and
``TfToolkit>CrfMarginals``. They compute in float32 whatever the logits are; transitions are float32.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library, ops

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("crf_log_likelihood")
_forward = _library.op("CrfLogLikelihood")
_backward = _library.op("CrfLogLikelihoodGrad")
_decode = _library.op("CrfDecode")
_marginals = _library.op("CrfMarginals")


def crf_log_likelihood(
    logits: Any,
    tags: Any,
    lengths: Any,
    transitions: Any,
    start: Any = None,
    end: Any = None,
    *,
    name: str | None = None,
) -> Any:
    """The logarithm of the probability of each sequence's tags; its mean, negated, is the loss.

    Args:
      logits: [batch, time, states], a score for each state at each place; float32, bfloat16 or float16. What stands
        behind a sequence's end is not looked at. Minus infinity forbids a state.
      tags: [batch, time], int32 or int64: the states that were right; anything behind a sequence's end.
      lengths: [batch], int32 or int64: how long each sequence is, 0 … time.
      transitions: [states, states]: the score of each state (row) being followed by each (column). Minus infinity
        forbids it.
      start: [states]: added to the scores of the first state; None for zeros.
      end: [states]: added to the scores of the last one.

    Returns:
      float32 [batch]. Differentiable to any order by logits, transitions, start and end (the second by a plain
      TensorFlow function, which JAX cannot use). An empty sequence has 0. A sequence in which no path is possible has
      minus infinity, and no gradient.

    Raises:
      tf.errors.InvalidArgumentError: a tag that is no state, or a length that does not fit, the first of which is
        named; shapes that do not fit together. On a GPU, where plain TensorFlow runs, tags and lengths are not refused:
        the likelihood of the sequence and its logits' gradient are NaN, and so are the gradients by scores that
        sequences share.
    """
    return _forward(logits, tags, lengths, *_wide(logits, transitions, start, end), name=name)


def crf_decode(
    logits: Any, lengths: Any, transitions: Any, start: Any = None, end: Any = None, *, name: str | None = None
) -> tuple[Any, Any]:
    """The path with the highest score through each sequence (Viterbi 1967), and its score.

    Args:
      logits, lengths, transitions, start, end: as of ``crf_log_likelihood``.

    Returns:
      (tags, score): int32 [batch, time], -1 behind a sequence's end, and float32 [batch], 0 for an empty sequence. Of
      equal scores the one whose last states are lower wins. Where a score is NaN, so is the sequence's. Has no
      gradient.

    Raises:
      tf.errors.InvalidArgumentError: as ``crf_log_likelihood``. On a GPU a sequence with a length that does not fit has
        the score NaN, and -1 for tags.
    """
    found = _decode(logits, lengths, *_wide(logits, transitions, start, end), name=name)
    return found.tags, found.score


def crf_marginals(
    logits: Any, lengths: Any, transitions: Any, start: Any = None, end: Any = None, *, name: str | None = None
) -> Any:
    """The probability of each state at each place, over all paths (forward-backward, Rabiner 1989).

    Args:
      logits, lengths, transitions, start, end: as of ``crf_log_likelihood``.

    Returns:
      float32 [batch, time, states]: zeros behind a sequence's end, and where no path is possible. Differentiable, in
      TensorFlow, by a plain TensorFlow function.

    Raises:
      tf.errors.InvalidArgumentError: as ``crf_log_likelihood``. On a GPU a sequence with a length that does not fit has
        NaN everywhere.
    """
    return _marginals(logits, lengths, *_wide(logits, transitions, start, end), name=name)


def _wide(logits: Any, *scores: Any) -> list[Any]:
    """In float32; None stays."""
    if "jax" in sys.modules and ops.is_jax([logits, *scores]):
        import jax.numpy as jnp

        return [one if one is None else jnp.asarray(one, jnp.float32) for one in scores]
    import tensorflow as tf

    return [one if one is None else tf.cast(one, tf.float32) for one in scores]


@_forward.reference
def _(logits: tf.Tensor, tags: tf.Tensor, lengths: tf.Tensor, transitions: tf.Tensor, start: Any, end: Any) -> Any:
    from tftoolkit.custom_ops.crf_log_likelihood import plain

    return plain.log_likelihood(logits, tags, lengths, transitions, start, end)


@_forward.gradient
def _(op: Any, dy: Any) -> tuple[Any, ...]:
    *inputs, start, end = op.inputs
    has_start, has_end = op.get_attr("has_start"), op.get_attr("has_end")
    found = _backward(*inputs, start if has_start else None, end if has_end else None, dy)
    return (
        *(found.dlogits, None, None, found.dtransitions),
        *(found.dstart if has_start else None, found.dend if has_end else None),
    )


@_backward.reference
def _(logits, tags, lengths, transitions, start, end, dy) -> Any:  # type: ignore[no-untyped-def]
    from tftoolkit.custom_ops.crf_log_likelihood import plain

    return plain.gradients(logits, tags, lengths, transitions, start, end, dy)


@_decode.reference
def _(logits: tf.Tensor, lengths: tf.Tensor, transitions: tf.Tensor, start: Any, end: Any) -> Any:
    from tftoolkit.custom_ops.crf_log_likelihood import plain

    return plain.decode(logits, lengths, transitions, start, end)


@_decode.gradient
def _(op: Any, *gradients: Any) -> Any:
    raise NotImplementedError("the best path has no gradient; crf_log_likelihood has one, and crf_marginals")


@_marginals.reference
def _(logits: tf.Tensor, lengths: tf.Tensor, transitions: tf.Tensor, start: Any, end: Any) -> Any:
    from tftoolkit.custom_ops.crf_log_likelihood import plain

    return plain.marginals(logits, lengths, transitions, start, end)


_backward.differentiate_reference()
_marginals.differentiate_reference()
