"""Shapes, options and dtypes that drive flash_attention's tests, checks and benchmark alike."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of q, k and v, what stands in the call beside them, and the dtype."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    depth: int
    value_depth: int
    options: tuple[tuple[str, Any], ...] = ()
    bias: tuple[int, int, int] | None = None  # its first three dimensions
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of q."""
        return self.batch, self.queries, self.heads, self.depth

    @property
    def dims(self) -> dict[str, int]:
        """By the names of the schemas; the bias' too."""
        names = ("batch", "queries", "keys", "heads", "kv_heads", "depth", "value_depth")
        bias = self.bias or (1, 1, 1)
        return {
            **{name: getattr(self, name) for name in names},
            **dict(zip(("bias_batch", "bias_heads", "bias_queries"), bias, strict=True)),
        }

    def __str__(self) -> str:
        sizes = f"{self.batch}x{self.queries}x{self.keys}, {self.heads}/{self.kv_heads} heads of "
        sizes += f"{self.depth}/{self.value_depth}"
        options = [f"{name}={value}" for name, value in self.options]
        return ", ".join([sizes, *options, *([f"bias={self.bias}"] if self.bias else []), self.dtype])


def case(*sizes: int, bias: tuple[int, int, int] | None = None, **options: Any) -> Case:
    """``case(batch, queries, keys, heads, kv_heads, depth, value_depth, causal=True …)``."""
    batch, queries, keys, heads, kv_heads, depth, value_depth = sizes
    return Case(batch, queries, keys, heads, kv_heads, depth, value_depth, tuple(options.items()), bias)


# A vector holds 4, 8 or 16 queries, a panel two vectors, a block of queries 64 or 256, a tile of keys 48 or 192, a tile
# of rows 6 or 8: sizes below, at and beside these; one query over many keys, whose keys are shared out; more queries
# than keys, of which the first see nothing.
CASES = (
    case(2, 5, 7, 2, 2, 3, 4),
    case(1, 1, 1, 1, 1, 1, 1),
    case(1, 70, 70, 4, 2, 8, 5, causal=True),
    case(2, 97, 193, 2, 1, 64, 64, causal=True),
    case(1, 257, 257, 1, 1, 48, 80, causal=True, window=50),
    case(1, 60, 100, 2, 2, 16, 16, window=7),
    case(1, 130, 220, 2, 2, 17, 33, softcap=3.0),
    case(3, 40, 90, 2, 2, 16, 16, lengths=(0, 50, 90), causal=True),
    case(1, 90, 40, 2, 1, 8, 8, causal=True),
    case(1, 1, 1500, 8, 2, 64, 32, causal=True),
    case(1, 33, 70, 2, 2, 256, 256),
    case(2, 33, 50, 4, 2, 16, 16, bias=(1, 4, 33), causal=True),
    case(2, 70, 50, 4, 2, 16, 16, bias=(2, 1, 1), softcap=2.0),
    case(2, 33, 50, 2, 2, 16, 16, bias=(1, 1, 33)),
)  # fmt: skip
EMPTY_CASES = (
    case(0, 4, 5, 2, 2, 8, 8), case(2, 0, 5, 2, 2, 8, 8), case(2, 4, 0, 2, 2, 8, 8), case(2, 4, 5, 2, 2, 8, 0),
    case(2, 4, 5, 0, 0, 8, 8), case(2, 4, 5, 2, 2, 0, 8),
)  # fmt: skip


def _random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _stats(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest scores and 1 / sum as small scores have them: opcheck makes other sizes, where they fit no more."""
    return rng.uniform(0, 0.3, shape).astype(np.float32), rng.uniform(0.1, 0.2, shape).astype(np.float32)


def _forward() -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    q, k, v = _random(rng, 2, 3, 4, 5), _random(rng, 2, 6, 2, 5), _random(rng, 2, 6, 2, 3)
    return [q, k, v, _random(rng, 1, 4, 3, 6), np.array([6, 4], np.int32)], {"scale": 0.4, "has_lse": True}


def _backward() -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(1)
    inputs, _ = _forward()
    o, d_o = _random(rng, 2, 3, 4, 3), _random(rng, 2, 3, 4, 3)
    stats = [*_stats(rng, 2, 3, 4), d_o, _random(rng, 2, 3, 4)]
    return [*inputs, o, *stats], {"scale": 0.1, "biased": True, "has_dbias": True}


def _forward_varlen() -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(2)
    q, k, v = _random(rng, 7, 4, 5), _random(rng, 9, 2, 5), _random(rng, 9, 2, 3)
    return [q, k, v, np.array([0, 3, 7], np.int32), np.array([0, 4, 9], np.int32)], {"scale": 0.4, "has_lse": True}


def _backward_varlen() -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(3)
    inputs, _ = _forward_varlen()
    stats = [*_stats(rng, 7, 4), _random(rng, 7, 4, 3), _random(rng, 7, 4)]
    return [*inputs, _random(rng, 7, 4, 3), *stats], {"scale": 0.1}


# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {
    "FlashAttention": _forward,
    "FlashAttentionGrad": _backward,
    "FlashAttentionVarlen": _forward_varlen,
    "FlashAttentionVarlenGrad": _backward_varlen,
}


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with. Packed ones get the rows of all sequences, cut anew."""
    rng, c, options = np.random.default_rng(0), case, dict(case.options)
    packed = "Varlen" in name
    rows, keys = ((c.batch * c.queries,), (c.batch * c.keys,)) if packed else ((c.batch, c.queries), (c.batch, c.keys))

    def draw(*shape: int) -> np.ndarray:
        return _random(rng, *shape).astype(c.dtype)

    lengths = options.pop("lengths", None)
    inputs: list[Any] = [draw(*rows, c.heads, c.depth), draw(*keys, c.kv_heads, c.depth)]
    inputs.append(draw(*keys, c.kv_heads, c.value_depth))
    if packed:
        inputs += [_borders(rng, count[0], c.batch + 1) for count in (rows, keys)]
    else:
        bias = draw(*c.bias, c.keys) if c.bias else None
        inputs += [bias, None if lengths is None else np.array(lengths, np.int32)]
    # Small scores: of one's rounding every power has its share, however exact the sum is. Other tests have large ones.
    attributes = {"scale": 0.25 / max(1, c.depth) ** 0.5, **options}
    if not name.endswith("Grad"):
        return inputs, attributes | {"has_lse": True}
    if not packed:
        inputs[3] = np.zeros((0, 0, 0, c.keys), c.dtype) if c.bias is None else inputs[3]
        attributes |= {"biased": c.bias is not None, "has_dbias": c.bias is not None}
    o = (*rows, c.heads, c.value_depth)
    return [*inputs, draw(*o), *_stats(rng, *rows, c.heads), draw(*o), _random(rng, *rows, c.heads)], attributes


def _borders(rng: np.random.Generator, rows: int, sequences: int) -> np.ndarray:
    return np.array([0, *sorted(rng.integers(0, rows + 1, sequences - 1)), rows], np.int32)
