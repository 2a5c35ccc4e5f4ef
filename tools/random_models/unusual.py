"""Random models that ordinary proofs let through: integers, strings, masks, channels and outputs of any size."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from draw import FREE, Draw, RandomModel

WORDS = np.array([b"apple", b"pear", b"", "Gr\u00fc\u00dfe".encode(), b"unknown", b"42", b"two words"], object)
Values = Callable[[np.random.Generator, Sequence[int]], np.ndarray]
Inputs = dict[str, tuple[tuple[int, ...], str, Values | None]]


def integers(d: Draw) -> RandomModel:
    """Division, modulo, one_hot, comparisons and look-ups of integers of any sign; integers and floats come out."""
    dtype = d.one("int32", "int32", "int32", "int64", "int8", "uint8", "int16")
    divisor, depth = d.one(2, 3, 4, 7, 10), d.size(3, 9)
    table, other = d.weights(depth, 5), d.chance(0.4)
    low = 0 if dtype[0] == "u" else -60

    number = tf.constant(divisor, dtype)
    negative = tf.constant(-divisor if low else divisor, dtype)
    step = d.one(
        lambda n: n // number, lambda n: n % number, lambda n: n // negative, lambda n: n % negative,
        lambda n: tf.abs(n) if low else n, lambda n: tf.maximum(n, number), lambda n: n * number - n,
        lambda n: tf.where(n > number, n, n // number), lambda n: tf.reverse(n, [1]), lambda n: n % number + n,
        lambda n: tf.cast(tf.cast(n, tf.float32) / divisor, dtype), lambda n: tf.math.sign(n) if low else n,
    )  # fmt: skip

    def whole(n: tf.Tensor) -> dict[str, tf.Tensor]:
        small = tf.cast(tf.cast(n, tf.int32) % depth, tf.int32)
        return {
            "number": step(n), "even": tf.equal(n % tf.constant(2, dtype), tf.constant(0, dtype)),
            "hot": tf.one_hot(tf.cast(n, tf.int32), depth), "row": tf.gather(table, small),
            "total": tf.reduce_sum(tf.cast(n, tf.int32), 1),
        }  # fmt: skip

    kept = [name for name in ("number", "even", "hot", "row", "total") if d.chance(0.7)] or ["number"]

    def function(n: tf.Tensor, m: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        found = whole(n)
        outputs = {name: found[name] for name in kept}
        return outputs if m is None else outputs | {"quotient": n // m, "rest": n % m}

    def values(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return rng.integers(low, 60, shape).astype(dtype)

    def divisors(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return np.where(rng.integers(0, 2, shape) if low else 1, 1, -1).astype(dtype) * rng.integers(
            1, 9, shape
        ).astype(dtype)

    return _module(d, function, {"n": ((6,), dtype, values)} | ({"m": ((6,), dtype, divisors)} if other else {}), dtype)


def words(d: Draw) -> RandomModel:
    """Strings looked up in a table, compared, or given for classes."""
    keys = tf.constant([word for word in WORDS if word != b"unknown"])
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys, tf.range(len(WORDS) - 1, dtype=tf.int64)), -1
    )
    weights = d.weights(8, 4)
    labels = tf.constant(WORDS[: d.size(2, 4)])

    def look_up(s: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"id": table.lookup(s), "row": tf.gather(weights, table.lookup(s) + 1)}

    def label(x: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = (x @ weights)[:, : len(labels)]
        return {"label": tf.gather(labels, tf.argmax(scores, -1)), "scores": scores}

    def same(s: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"same": tf.equal(s, "pear"), "copy": tf.reverse(s, [1])}

    def strings(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return WORDS[rng.integers(0, len(WORDS), shape)]

    name = d.one("look-up", "label", "comparison")
    function = {"look-up": look_up, "label": label, "comparison": same}[name]
    made: Inputs = {"x": ((8,), "float32", None)} if name == "label" else {"s": ((3,), "string", strings)}
    found = _module(d, function, made, f"strings: {name}")
    found.model.table = table
    return found


def masked(d: Draw) -> RandomModel:
    """Attention or a mean over the places that a mask leaves, which is of floats, booleans, integers, or lengths."""
    kind, large = d.one("float32", "bool", "int32", "lengths"), d.one(-1e9, -1e9, -1e4, -30.0)
    time, width = d.size(4, 8), 8
    q, k, v = (d.weights(width, width) for _ in range(3))
    by_where, pooled = d.chance(0.4), d.chance(0.3)

    def function(x: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        kept = tf.sequence_mask(mask, time, tf.float32) if kind == "lengths" else tf.cast(mask, tf.float32)
        if pooled:
            return {"mean": tf.reduce_sum(x * kept[..., None], 1) / tf.maximum(tf.reduce_sum(kept, 1, True), 1.0)}
        scores = tf.matmul(x @ q, x @ k, transpose_b=True) / width**0.5
        if by_where:
            scores = tf.where(kept[:, None, :] > 0.5, scores, large)
        else:
            scores += (1.0 - kept)[:, None, :] * large
        return {"y": tf.nn.softmax(scores) @ (x @ v)}

    def lengths(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return rng.integers(1, time, shape[:1], endpoint=True).astype(np.int32)

    def places(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return (np.arange(time) < lengths(rng, shape)[:, None]).astype(kind)

    mask = ((), "int32", lengths) if kind == "lengths" else ((time,), kind, places)
    return _module(d, function, {"x": ((time, width), "float32", None), "mask": mask}, f"mask of {kind}, {large:g}")


def wide(d: Draw) -> RandomModel:
    """Channels of one output over decades, or several outputs of very different size."""
    first, second = d.weights(3, 3, 3, 16), d.weights(1, 1, 16, 8)
    sizes = (10.0 ** d.rng.uniform(-d.size(0, 3), d.size(0, 3), 8)).astype(np.float32)
    apart, squashed = d.chance(0.4), d.chance(0.5)

    def function(x: tf.Tensor) -> dict[str, tf.Tensor]:
        h = tf.nn.conv2d(tf.nn.relu(tf.nn.conv2d(x, first, 2, "SAME")), second, 1, "SAME")
        h = (tf.sigmoid(h) if squashed else h) * sizes
        return {"small": h[..., :3], "middle": h[..., 3:5], "large": h[..., 5:] * 100.0} if apart else {"all": h}

    name = "outputs" if apart else "channels"
    return _module(
        d, function, {"x": ((8, 8, 3), "float32", None)}, f"{name} over {np.ptp(np.log10(sizes)):.1f} decades"
    )


def _module(d: Draw, function: Callable[..., Any], made: Inputs, part: str) -> RandomModel:
    """``made``: from the name of an input to its shape without the batch, its dtype and what it holds."""
    batch = d.one(1, FREE, None)
    specs = [tf.TensorSpec([batch, *shape], dtype, name) for name, (shape, dtype, _) in made.items()]
    values = {name: value for name, (_, _, value) in made.items() if value is not None}
    parts = ("tf.Module", part, "free batch" if batch is None else f"batch of {batch}")
    return RandomModel(tf.Module(), {"serving_default": (function, specs)}, parts, values)


KINDS = (integers, words, masked, wide)
