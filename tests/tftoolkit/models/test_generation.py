"""What generate writes: the same as without a cache, distributed as asked for, refused where it cannot be."""

import gc

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tftoolkit import models
from tftoolkit.models import generation

VOCABULARY = 50


def llama():
    return models.Llama(VOCABULARY, width=32, layers=2, heads=4, kv_heads=2, seed=1)


def gpt2():
    return models.Gpt2(VOCABULARY, width=32, layers=1, heads=2, context=64, seed=1)


def lstm():
    return models.Recurrent(VOCABULARY, width=24, layers=2, seed=1)


def anew(model, prompt, count):
    """Greedy, with everything computed anew for each token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(tf.argmax(model(tf.constant([tokens]))[0, -1])))
    return tokens[len(prompt) :]


class Fixed(tf.Module):
    """Always the same logits, whatever stands there."""

    def __init__(self, logits, context=None):
        super().__init__()
        self.vocabulary, self.context = len(logits), context
        self._logits = tf.constant(logits, tf.float32)

    def empty_cache(self, batch, capacity):
        return {"nothing": tf.zeros([batch, 1])}

    def decode(self, tokens, cache, start):
        return tf.zeros_like(tokens, tf.float32)[..., tf.newaxis], cache

    def logits(self, hidden):
        return self._logits + tf.zeros_like(hidden)


@pytest.mark.parametrize("make", [llama, gpt2, lstm])
def test_prompts_together_with_cache_equal_each_alone_without(make):
    model, prompts = make(), [[1, 2, 3], [5], [7, 8, 9, 1, 2]]
    written = models.generate(model, prompts, 12, temperature=0)
    assert [one.tolist() for one in written] == [anew(model, prompt, 12) for prompt in prompts]


def sampled(logits, count=20_000, **options):
    """How often each token comes, one written behind each of many prompts."""
    rows = 500
    model = Fixed(logits)
    written = models.generate(model, [[0]] * rows, count // rows, seed=7, **options)
    return np.bincount(np.concatenate(written), minlength=len(logits))


LOGITS = np.log([0.4, 0.3, 0.15, 0.1, 0.05])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.15, 0.1, 0.05]),
        ({"temperature": 0.5}, np.square([0.4, 0.3, 0.15, 0.1, 0.05])),
        ({"top_k": 3}, [0.4, 0.3, 0.15, 0, 0]),
        ({"top_p": 0.6}, [0.4, 0.3, 0, 0, 0]),
        ({"top_p": 0.75}, [0.4, 0.3, 0.15, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0, 0]),
        # Of the two likeliest the first has 0.57.
        ({"top_k": 2, "top_p": 0.5}, [1, 0, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.6}, [0.4, 0.3, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_they_should(options, expected):
    counts, shares = sampled(LOGITS, **options), np.array(expected) / np.sum(expected)
    possible = shares > 0
    assert not counts[~possible].any()
    if possible.sum() > 1:
        test = scipy.stats.chisquare(counts[possible], counts.sum() * shares[possible])
        assert test.pvalue > 1e-4, (counts, counts.sum() * shares)


def test_the_repetition_penalty_weakens_what_stands_there():
    logits = tf.constant([[2.0, -2.0, 1.0, -1.0]])
    tokens = tf.constant([[0, 1, 3, 2]])
    found = generation.penalized(logits, tokens, tf.constant([True, True, False, False]), tf.constant(2.0))
    assert found.numpy().tolist() == [[1.0, -4.0, 1.0, -1.0]]
    # 0 is the likeliest until it stands there: then 2 and 1 are.
    written = models.generate(Fixed([1.0, 0.6, 0.8]), [0], 3, temperature=0, repetition_penalty=2.0)
    assert written.tolist() == [2, 1, 0]


def test_seeds_repeat_and_differ():
    model = lstm()
    first, again, other = (models.generate(model, [1], 30, seed=seed).tolist() for seed in (5, 5, 6))
    assert first == again != other


def test_a_sequence_stops_at_its_end():
    model = llama()
    whole = models.generate(model, [[1, 2, 3], [4, 4]], 20, temperature=0)
    end = int(whole[0][7])
    cut = models.generate(model, [[1, 2, 3], [4, 4]], 20, temperature=0, end=end)
    for one, full in zip(cut, whole, strict=True):
        places = np.flatnonzero(full == end)
        assert one.tolist() == full[: places[0] if len(places) else 20].tolist()
    assert len(cut[0]) <= 7


def test_it_is_traced_once_for_all_options():
    model = lstm()
    for seed, length in ((1, 3), (2, 5), (3, 9)):
        models.generate(model, [1] * length, 20, seed=seed, temperature=0.5 + seed, top_k=seed, top_p=0.5)
    assert generation._writer(model).experimental_get_tracing_count() == 1


def test_a_models_compiled_function_goes_with_it():
    before = len(generation._writers)
    model = lstm()
    models.generate(model, [1], 1)
    assert len(generation._writers) == before + 1
    del model
    gc.collect()
    assert len(generation._writers) == before


def test_texts_in_texts_out():
    class Letters:
        def encode(self, text):
            return np.array([ord(letter) - ord("a") for letter in text])

        def decode(self, tokens):
            return "".join(chr(ord("a") + token) for token in tokens)

    model = Fixed([0, 0, 1, 0])
    assert models.generate(model, "ab", 3, temperature=0, tokenizer=Letters()) == "ccc"
    assert models.generate(model, ["ab", "d"], 3, temperature=0, tokenizer=Letters()) == ["ccc", "ccc"]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt is empty"),
        ([[1], []], {}, "prompt 1 is empty"),
        ("text", {}, "prompt is a text; give its tokens, or the tokenizer"),
        ([0.5], {}, "prompt must be a sequence of token ids, got float64"),
        ([1, 4], {}, r"prompt has tokens 1 to 4; they must be in \[0, 4\)"),
        ([-1], {}, r"prompt has tokens -1 to -1; they must be in \[0, 4\)"),
        ([1] * 9, {}, "prompt has 9 tokens, and 8 new ones .* context of 16; .*its last 8 tokens"),
        ([1], {"max_new_tokens": 16}, "max_new_tokens=16: the model's context is 16"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ([1], {"temperature": -0.1}, "temperature must be a finite number, 0 or above, got -0.1"),
        ([1], {"temperature": float("nan")}, "temperature must be a finite number"),
        ([1], {"top_k": 0}, "top_k must be at least 1, or None, got 0"),
        ([1], {"top_p": 0.0}, "top_p must be above 0 and at most 1, or None, got 0.0"),
        ([1], {"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ([1], {"repetition_penalty": 0.0}, "repetition_penalty must be a finite number above 0, got 0.0"),
    ],
)
def test_what_cannot_be_is_refused(prompt, options, message):
    with pytest.raises(ValueError, match=message):
        models.generate(Fixed([0.0] * 4, context=16), prompt, **{"max_new_tokens": 8, **options})
