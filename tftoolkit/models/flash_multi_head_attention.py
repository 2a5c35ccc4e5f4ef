"""``keras.layers.MultiHeadAttention`` (Keras 3) on ``custom_ops.flash_attention``."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tftoolkit import custom_ops


@keras.saving.register_keras_serializable("tftoolkit")
class FlashMultiHeadAttention(keras.layers.MultiHeadAttention):
    """A ``keras.layers.MultiHeadAttention`` whose scores never exist as a whole: same arguments, weights and outputs.

    Where a causal mask is the only one, and there are as many keys as queries, nothing of the size of the scores is
    held. Other masks become a bias, as large as the mask. A query that sees nothing gets zeros, where Keras averages
    all values.

    Raises:
      ValueError: dropout of the scores, several attention axes, or ``return_attention_scores``, which all need the
        scores; use Keras's own layer there.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self._dropout > 0:
            raise ValueError(f"dropout={self._dropout}: it drops scores, which don't exist here; use dropout=0")
        self._only_causal = False

    def _compute_attention_mask(self, query: Any, value: Any, *masks: Any, **named: Any) -> Any:
        same_length = query.shape[1] is not None and query.shape[1] == value.shape[1]
        given = [*masks, *(named.get(name) for name in ("query_mask", "value_mask", "key_mask", "attention_mask"))]
        self._only_causal = bool(named.get("use_causal_mask")) and same_length and self._sliding_window is None
        self._only_causal &= all(mask is None for mask in given)
        return None if self._only_causal else super()._compute_attention_mask(query, value, *masks, **named)

    def _compute_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
    ) -> tuple[Any, None]:
        if return_attention_scores or len(query.shape) != 4:
            what = "return_attention_scores=True" if return_attention_scores else "several attention axes"
            raise ValueError(
                f"{what}: it needs the scores, which don't exist here; use keras.layers.MultiHeadAttention"
            )
        bias = None
        if attention_mask is not None:
            mask = tf.cast(attention_mask, tf.bool)
            mask = mask[:, tf.newaxis] if mask.shape.rank == 3 else mask
            bias = tf.where(mask, tf.zeros([], query.dtype), tf.constant(-float("inf"), query.dtype))
        scale = float(self._inverse_sqrt_key_dim)
        return custom_ops.flash_attention(query, key, value, causal=self._only_causal, bias=bias, scale=scale), None
