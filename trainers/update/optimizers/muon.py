"""Muon."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.trainers import naming
from tftoolkit.trainers.distribution.replicas import own
from tftoolkit.trainers.update.optimizers.adam import AdamW
from tftoolkit.trainers.update.optimizers.base import norm
from tftoolkit.trainers.update.optimizers.rule import Turn, check_fractions
from tftoolkit.trainers.update.schedules import Schedule

OTHERS = ("*embed*", "*head", "*head/*", "*logits*", "*classifier*")
"""Patterns of the names of matrices that are usually no hidden layers."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the authors' polynomial, whose slope at 0 is large
_ITERATIONS = 5


class Muon(AdamW):
    """Orthogonalised momentum for the matrices of hidden layers, AdamW for everything else (Jordan et al. 2024).

    For a matrix of shape [n, m]::

        b <- momentum * b + g
        o = the orthogonal matrix nearest to g + momentum * b, about: five steps of a Newton-Schulz iteration
        w <- w - learning_rate * (scale * o + weight_decay * w)

    The iteration is done in float32 at least (the authors' in bfloat16) on the smaller side: 10 to 15 products of
    min(n, m)^2 * max(n, m) multiplications per step, whatever the batch.

    **Which weights are hidden:** those of rank 2, except those whose names ``others`` matches. Kernels of convolutions,
    attention kernels of rank 3, biases, scales and embeddings are AdamW's, as in PyTorch and Keras. The attribute
    ``hidden`` tells what came out of it.

    Args:
        learning_rate, master_weights: as for every :class:`Rule`; the rate is that of AdamW's weights, too.
        momentum, weight_decay: as above; the decay is that of AdamW's weights, too.
        adjust: "match_rms_adamw": ``scale = 0.2 * sqrt(max(n, m))``, with which updates are as large as AdamW's, so
            that rates and decays found for AdamW will do (Liu et al. 2025, equation 4); or "original":
            ``scale = sqrt(max(1, m / n))``, where ``m`` is the number of outputs, since matrices are applied as
            ``x @ w`` here (PyTorch's are transposed); give AdamW's weights a rate of their own then, by
            ``Update(learning_rate_factors=…)``.
        others: patterns of the names of matrices that are left to AdamW, each of which must match some weight; None:
            those of ``OTHERS`` that do. Embeddings and the last layer belong there.
        beta_1, beta_2, epsilon: of AdamW's weights.
        fused: update AdamW's weights, and take the norm of all gradients, by compiled ops, as :class:`AdamW` says.

    Raises:
        BuildError: fused, and the ops can't be compiled.
        ValueError: a number out of range; another ``adjust``; from ``build``: a pattern that matches nothing; what
            ``fused`` and ``master_weights`` refuse.
        TypeError: ``others`` is a string; from ``build``: what ``fused`` refuses.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        adjust: str = "match_rms_adamw",
        others: Sequence[str] | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        master_weights: bool = False,
        fused: bool = False,
    ) -> None:
        check_fractions(momentum=momentum)
        if adjust not in ("match_rms_adamw", "original"):
            raise ValueError(f"adjust must be 'match_rms_adamw' or 'original', but is {adjust!r}")
        if isinstance(others, str):
            raise TypeError(f"others must be a sequence of patterns, but is the string {others!r}")
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            master_weights=master_weights,
            fused=fused,
        )
        self.momentum = momentum
        self.adjust = adjust
        self.others = others
        self.hidden: tuple[bool, ...] = ()

    def _adopt(self, weights: Sequence[Any], rate_factors: Sequence[float], decays: Sequence[bool]) -> None:
        super()._adopt(weights, rate_factors, decays)
        if self.others is None:
            matches = naming.matching(OTHERS, self.names, None)
        else:
            matches = naming.matching(self.others, self.names, "others")
        left = {name for names in matches.values() for name in names}
        self.hidden = tuple(
            weight.shape.rank == 2 and name not in left for weight, name in zip(self.weights, self.names, strict=True)
        )

    def slot_names(self) -> tuple[str, ...]:
        return ("momentum", *super().slot_names())

    def _new_slot(self, slot: str, weight: tf.Variable) -> tf.Variable | None:
        is_hidden = any(one is weight for one, hidden in zip(self.weights, self.hidden, strict=True) if hidden)
        return super()._new_slot(slot, weight) if slot == "master" or is_hidden == (slot == "momentum") else None

    def step(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        if not self.fused:
            super().step(gradients, ok)
            return
        learning_rate = self.learning_rate
        for number, hidden in enumerate(self.hidden):
            if hidden:
                self._take_turn(number, gradients[number], ok, learning_rate, ())
        if rest := [number for number, hidden in enumerate(self.hidden) if not hidden]:
            self._move_at_once(rest, [gradients[number] for number in rest], ok)
        own(self.iterations).assign_add(tf.cast(ok, tf.int64))

    def moved(self, one: Turn, *scalars: tf.Tensor) -> tf.Tensor:
        if not self.hidden[one.number]:
            return super().moved(one, *scalars)
        mean = one.change("momentum", lambda old: self.momentum * old + one.gradient)
        inputs, outputs = one.value.shape
        scale = (max(1.0, outputs / inputs) ** 0.5) if self.adjust == "original" else 0.2 * max(inputs, outputs) ** 0.5
        return one.value - one.rate * one.decayed(scale * orthogonalized(one.gradient + self.momentum * mean))


def orthogonalized(matrix: tf.Tensor) -> tf.Tensor:
    """``U S V^T -> U S' V^T`` with each number of ``S'`` about 1 (0.7 to 1.2), unless it is tiny beside the others."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if is_tall else matrix
    x = x / tf.maximum(norm(x), 1e-7)  # so that no number in S is above 1
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    return tf.transpose(x) if is_tall else x
