"""Writing on: one token after the other, each chosen by what the model says follows those before."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_CAPACITY_STEP = 64  # caches grow by so much, so that other lengths seldom need another trace
_NEVER = -1  # no token


def generate(
    model: Any,
    prompt: Any,
    max_new_tokens: int = 100,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    end: int | None = None,
    tokenizer: Any = None,
) -> Any:
    """What a language model writes behind a prompt, or behind each of several.

    The model reads a prompt once and keeps what it needs of it (keys and values, or a state), so that each new token
    costs the same. All tokens are written in one call of a graph, which is traced once for each number of prompts and
    64 positions.

    Args:
      model: a decoder (``Llama``, ``Gpt2``), ``Recurrent``, or what has their ``vocabulary``, ``context``,
        ``empty_cache``, ``decode`` and ``logits``.
      prompt: token ids, or a list of such sequences, of equal or other lengths; with a tokenizer a text or several.
      max_new_tokens: how many to write.
      temperature: logits are divided by it; 0 takes the likeliest token each time.
      top_k: choose among so many likeliest tokens only.
      top_p: choose among the likeliest tokens that together have this probability (Holtzman et al. 2020), at least one.
      repetition_penalty: above 1: logits of tokens that stand there already are divided by it, or multiplied where
        they are negative (Keskar et al. 2019).
      seed: the same seed chooses the same tokens, for the same prompts, on the same machine.
      end: a token behind which a sequence ends; it does not come out.
      tokenizer: a ``pipelines.text.Tokenizer``, or what has its ``encode`` and ``decode``.

    Returns:
      The new tokens, int32[at most max_new_tokens], or a list of them, or texts.

    Raises:
      ValueError: no such arguments: an empty prompt, one that leaves no room in the model's context, tokens outside
        the vocabulary, options out of range.
    """
    _check_options(max_new_tokens, temperature, top_k, top_p, repetition_penalty)
    prompts, is_one = _prompts(prompt, tokenizer)
    _check_prompts(prompts, model, max_new_tokens)
    lengths = np.array([len(one) for one in prompts], np.int32)
    stop = int(lengths.max()) + max_new_tokens
    capacity = -(-stop // _CAPACITY_STEP) * _CAPACITY_STEP
    tokens = np.zeros([len(prompts), capacity], np.int32)
    for row, one in zip(tokens, prompts, strict=True):
        row[: len(one)] = one
    written = _writer(model)(
        tf.constant(tokens),
        tf.constant(lengths),
        tf.constant(stop),
        tf.constant(_NEVER if end is None else end),
        tf.constant(seed, tf.int64),
        *(tf.constant(value, tf.float32) for value in (temperature, top_p or 1.0, repetition_penalty)),
        tf.constant(min(top_k or model.vocabulary, model.vocabulary)),
        sampled=temperature > 0,
        cut=top_k is not None or top_p is not None,
    ).numpy()
    found = [_up_to(end, row[n : n + max_new_tokens]) for row, n in zip(written, lengths, strict=True)]
    texts = found if tokenizer is None else [tokenizer.decode(one) for one in found]
    return texts[0] if is_one else texts


def _prompts(prompt: Any, tokenizer: Any) -> tuple[list[np.ndarray], bool]:
    """The prompts as arrays, and whether there was just one, not in a list."""
    if tokenizer is not None:
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        return [tokenizer.encode(text) for text in texts], isinstance(prompt, str)
    if isinstance(prompt, str) or (isinstance(prompt, Sequence) and any(isinstance(one, str) for one in prompt)):
        raise ValueError("prompt is a text; give its tokens, or the tokenizer as well")
    is_one = np.ndim(prompt) == 1 if hasattr(prompt, "shape") else not any(np.ndim(one) for one in prompt)
    return [np.asarray(one) for one in ([prompt] if is_one else prompt)], is_one


def _check_prompts(prompts: Sequence[np.ndarray], model: Any, max_new_tokens: int) -> None:
    if not prompts:
        raise ValueError("prompt: an empty list; give at least one prompt")
    for number, one in enumerate(prompts):
        where = f"prompt {number}" if len(prompts) > 1 else "prompt"
        if one.ndim != 1 or (one.size and one.dtype.kind not in "iu"):
            raise ValueError(f"{where} must be a sequence of token ids, got {one.dtype}{list(one.shape)}")
        if not one.size:
            raise ValueError(f"{where} is empty: there must be a token to begin with, such as that of the end of texts")
        if one.min() < 0 or one.max() >= model.vocabulary:
            raise ValueError(f"{where} has tokens {one.min()} to {one.max()}; they must be in [0, {model.vocabulary})")
        if model.context is not None and one.size + max_new_tokens > model.context:
            raise ValueError(
                f"{where} has {one.size} tokens, and {max_new_tokens} new ones are asked for: that is more than the "
                f"model's context of {model.context}; shorten the prompt (its last {model.context - max_new_tokens} "
                "tokens would fit), or ask for fewer"
                if max_new_tokens < model.context
                else f"max_new_tokens={max_new_tokens}: the model's context is {model.context}, prompt included"
            )


def _check_options(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, repetition_penalty: float
) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number, 0 or above, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, or None, got {top_p}")
    if not 0 < repetition_penalty < float("inf"):
        raise ValueError(f"repetition_penalty must be a finite number above 0, got {repetition_penalty}")


def _up_to(end: int | None, tokens: np.ndarray) -> np.ndarray:
    places = np.flatnonzero(tokens == end)  # none where end is None
    return tokens[: places[0]] if len(places) else tokens


_writers: weakref.WeakKeyDictionary[Any, Callable[..., tf.Tensor]] = weakref.WeakKeyDictionary()


def _writer(model: Any) -> Callable[..., tf.Tensor]:
    """The compiled function of a model; it goes when the model goes."""
    if model not in _writers:
        _writers[model] = tf.function(functools.partial(_write, weakref.ref(model)), autograph=False)
    return _writers[model]


def _write(
    model: Callable[[], Any],
    tokens: tf.Tensor,
    lengths: tf.Tensor,
    stop: tf.Tensor,
    end: tf.Tensor,
    seed: tf.Tensor,
    temperature: tf.Tensor,
    top_p: tf.Tensor,
    repetition_penalty: tf.Tensor,
    top_k: tf.Tensor,
    *,
    sampled: bool,
    cut: bool,
) -> tf.Tensor:
    """The tokens, int32[batch, capacity], with those from ``lengths`` to ``stop`` written.

    Prompts begin together and are read together up to the end of the shortest. From there on all get one token per
    turn: their own as long as their prompt goes on, then what is chosen. So no sequence has padding in it, which a
    state could not forget.
    """
    decoder = model()
    batch, capacity = tokens.shape
    places: tf.Tensor = tf.range(capacity)
    first = tf.reduce_min(lengths)
    hidden, cache = decoder.decode(tokens[:, :first], decoder.empty_cache(batch, capacity), 0)

    def logits_of(hidden: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.cast(decoder.logits(hidden[:, -1]), tf.float32), [batch, decoder.vocabulary])

    def unfinished(t: tf.Tensor, tokens: tf.Tensor, logits: tf.Tensor, cache: Any, ended: tf.Tensor) -> tf.Tensor:
        return (t < stop) & ~tf.reduce_all(ended)

    def turn(t: tf.Tensor, tokens: tf.Tensor, logits: tf.Tensor, cache: Any, ended: tf.Tensor) -> Any:
        logits = penalized(logits, tokens, places < t, repetition_penalty)
        if sampled:
            logits = logits / temperature
            logits = cut_off(logits, top_k, top_p) if cut else logits
            key = tf.stack([seed, tf.cast(t, tf.int64)])
            chosen = tf.random.stateless_categorical(logits, 1, key, tf.int32)[:, 0]
        else:
            chosen = tf.argmax(logits, -1, tf.int32)
        chosen = tf.where(t < lengths, tokens[:, t], chosen)
        ended |= (t >= lengths) & (chosen == end)
        tokens = tf.where(places == t, chosen[:, tf.newaxis], tokens)
        hidden, cache = decoder.decode(chosen[:, tf.newaxis], cache, t)
        return t + 1, tokens, logits_of(hidden), cache, ended

    state = (first, tokens, logits_of(hidden), cache, tf.zeros([batch], tf.bool))
    return tf.while_loop(unfinished, turn, state)[1]


def penalized(logits: tf.Tensor, tokens: tf.Tensor, is_there: tf.Tensor, penalty: tf.Tensor) -> tf.Tensor:
    """Less of tokens that are there already; is_there, bool[capacity], says which of [batch, capacity] are some."""
    batch, vocabulary = logits.shape
    rows = tf.broadcast_to(tf.range(batch)[:, tf.newaxis], tokens.shape)
    counts = tf.scatter_nd(
        tf.stack([rows, tokens], -1),
        tf.broadcast_to(tf.cast(is_there, tf.int32), tokens.shape),
        [batch, vocabulary],
    )
    return tf.where(counts > 0, tf.where(logits > 0, logits / penalty, logits * penalty), logits)


def cut_off(logits: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor) -> tf.Tensor:
    """-inf for all but the top_k likeliest, and of these for all but the likeliest that have top_p together."""
    ranked = tf.sort(logits, direction="DESCENDING")
    ranked = tf.where(tf.range(logits.shape[-1]) < top_k, ranked, -float("inf"))
    before = tf.cumsum(tf.nn.softmax(ranked), axis=-1, exclusive=True)
    kept = (before < top_p) & tf.math.is_finite(ranked)
    least = tf.reduce_min(tf.where(kept, ranked, float("inf")), axis=-1, keepdims=True)
    return tf.where(logits < least, -float("inf"), logits)


def generation_signatures(
    model: Any, prefill: int | None, capacity: int
) -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """What ``export.tflite`` takes to make one file that writes: the signatures "prefill" and "decode".

    Both read tokens that follow those of a cache, and return the logits of what follows the last of them, and the next
    cache. A program that writes begins with a cache of zeros, gives "prefill" as many whole parts of the prompt as
    there are, and "decode" the rest and then each new token, with the position of the first.

    Args:
      model: what ``generate`` takes.
      prefill: how many tokens "prefill" reads at once. None: "decode" alone, for ``export.onnx``, whose files hold one
        function.
      capacity: how many tokens the cache has room for, prompt included.

    Returns:
      Inputs: tokens, int32[1, prefill or 1]; start, int32[1]; and the cache by its names. Outputs: logits, float32[1,
      vocabulary], and the cache. Where "decode" is alone ``_out`` follows the names of the cache that comes out: in
      ONNX no output has the name of an input.

    Raises:
      ValueError: numbers below 1, or a cache larger than the model's context.
    """
    if not 1 <= (1 if prefill is None else prefill) <= capacity:
        raise ValueError(f"prefill must be from 1 to capacity={capacity}, got {prefill}")
    if model.context is not None and capacity > model.context:
        raise ValueError(f"capacity={capacity} is more than the model's context of {model.context}")
    cache = {name: tf.TensorSpec(row.shape, row.dtype, name) for name, row in model.empty_cache(1, capacity).items()}

    def extended(tokens: tf.Tensor, start: tf.Tensor, *rows: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden, after = model.decode(tokens, dict(zip(cache, rows, strict=True)), start)
        named = {name + ("" if prefill else "_out"): rows for name, rows in after.items()}
        return {"logits": tf.cast(model.logits(hidden[:, -1]), tf.float32), **named}

    start = tf.TensorSpec([1], tf.int32, "start")
    return {
        name: (extended, [tf.TensorSpec([1, length], tf.int32, "tokens"), start, *cache.values()])
        for name, length in (("decode", 1), ("prefill", prefill))  # the first one's latency stands in reports
        if length
    }
