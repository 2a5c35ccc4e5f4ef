"""The made-up inputs that a file is proven on: random ones, zeros, large, infinite and NaN, and integers of all sizes.

Kinds of calls. ``random``: floats are standard normal, integers 0 and 1, strings words; where there are real inputs,
numbers are of their range and strings are theirs. ``zeros``; ``large``: floats 1000 times as large; ``inf`` and
``nan``: some in each array of floats. Integers have kinds of their own: ``-9..9`` and the like have numbers from that
range, ``-1..1`` looks for what becomes of padding labels, ``limits`` has the least and greatest numbers of the type.
TensorFlow refuses many of them (an index that isn't there), and says so; such calls prove nothing and are left out.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tftoolkit.export.runtimes.runtime import Arrays, Signature, Tensor
from tftoolkit.export.runtimes.samples import Case

Range = tuple[float, float]
Ranges = Mapping[str, Range]  # by the names of inputs
LARGE = 1e3  # times the random inputs
NOT_FINITE = ("nan", "inf")
INTEGERS = {"0..9": (0, 9), "0..255": (0, 255), "-1..1": (-1, 1), "-9..9": (-9, 9)}
LIMITS = "limits"
CALLS = 4  # of a kind of integers at most, where arrays are small
SIZE = 8  # of a free dimension then
WORDS = (b"apple", b"", b"a", "Grüße".encode(), b"Hello, world", b"42", b"x y  z", b"-1.5", b"unknown", b"Tab\tNL\n")
NUMBERS = (b"7", b"0", b"42", b"-3", b"105")  # as strings


def cases(
    signatures: Mapping[str, Signature], real: Mapping[str, list[Arrays]], seed: int = 0, ranges: Ranges | None = None
) -> list[Case]:
    """All inputs of a proof: the real ones and the made-up ones, which keep to ``ranges``.

    Raises ValueError where an input's rank is unknown and there are no real inputs.
    """
    rng = np.random.default_rng(seed)
    found = []
    for name, signature in signatures.items():
        maker = _Maker(signature, real.get(name, []), ranges or {}, rng)
        found += [Case("real", name, arrays) for arrays in real.get(name, [])]
        found += [Case(kind, name, arrays) for kind, arrays in maker.numbers()]
        found += [Case(kind, name, arrays, only) for kind, arrays, only in maker.integers()]
    return found


def latency_inputs(signature: Signature, real: list[Arrays]) -> Arrays:
    """One example: the first real one where there is any, else random."""
    inputs = real[0] if real else _Maker(signature, [], {}, np.random.default_rng(0)).random(1, WORDS)
    free = {tensor.name for tensor in signature.inputs if tensor.shape is not None and tensor.shape[:1] == (None,)}
    return {name: array[:1] if name in free else array for name, array in inputs.items()}


class _Maker:
    """Makes up inputs of one signature."""

    def __init__(self, signature: Signature, known: list[Arrays], ranges: Ranges, rng: np.random.Generator) -> None:
        self._tensors = signature.inputs
        self._known = known
        self._ranges = ranges
        self._rng = rng

    def numbers(self) -> Iterator[tuple[str, Arrays]]:
        # Two sizes for the free dimensions: a batch size that was frozen by mistake shows.
        random: Arrays = {}
        for size, words in ((1, WORDS), (3, NUMBERS)) if not self._known else ((1, WORDS),):
            random = self.random(size, words)
            yield "random", random
        yield "zeros", self._each(random, lambda array: array if array.dtype == object else np.zeros_like(array))
        yield "large", self._each(random, lambda array: array if array.dtype.kind in "biuO" else array * LARGE)
        for kind in NOT_FINITE:
            changed = {name: self._not_finite(kind, name, array) for name, array in random.items()}
            if any(changed[name] is not array for name, array in random.items()):
                yield kind, changed

    def integers(self) -> Iterator[tuple[str, Arrays, str | None]]:
        """Each kind with all integer inputs at once, and with one after the other where there are several."""
        wanted = [tensor for tensor in self._tensors if tensor.dtype.kind in "iu"]
        base = self.random(SIZE, WORDS) if wanted else {}
        for kind in [*INTEGERS, LIMITS] if wanted else ():
            values = {tensor.name: self._values(kind, tensor) for tensor in wanted}
            for only in (None, *values) if len(values) > 1 else (None,):
                chosen = {name: found for name, found in values.items() if only in (None, name) and found.size}
                if chosen:
                    yield from ((kind, arrays, only) for arrays in self._calls(base, chosen))

    def _values(self, kind: str, tensor: Tensor) -> np.ndarray:
        """The numbers of a kind that the input may have, the telling ones first."""
        info = np.iinfo(tensor.dtype)
        low, high = (int(limit) for limit in self._ranges.get(tensor.name, (info.min, info.max)))
        if kind == LIMITS:
            found = [low, high, low + 1, high - 1, -1, 1, 0]
        else:
            least, most = max(INTEGERS[kind][0], low), min(INTEGERS[kind][1], high)
            if INTEGERS[kind][0] < 0 <= least:  # an unsigned type, or a range: 0..9 is tried anyway
                return np.array([], tensor.dtype)
            outside_in = [least, most, least + 1, most - 1] if least + 1 < most else []
            found = [*outside_in, *self._rng.permutation(np.arange(least, most + 1))]
        return np.array([value for value in found if max(low, info.min) <= value <= min(high, info.max)], tensor.dtype)

    def _calls(self, base: Arrays, values: Mapping[str, np.ndarray]) -> Iterator[Arrays]:
        """Calls until each number was there once, or ``CALLS``; each input goes through them in an order of its own.

        All else is as in ``base``, which a proof thus stores once.
        """
        smallest = min(base[name].size for name in values)
        count = min(CALLS, -(-max(found.size for found in values.values()) // max(1, smallest)))
        orders = [found if i == 0 else self._rng.permutation(found) for i, found in enumerate(values.values())]
        streams = {name: itertools.cycle(order) for name, order in zip(values, orders, strict=True)}
        for _ in range(count):
            arrays = dict(base)
            for name, stream in streams.items():
                array = base[name]
                taken = np.array(list(itertools.islice(stream, min(array.size, values[name].size))), array.dtype)
                arrays[name] = np.resize(taken, array.shape) if array.size else array
            yield arrays

    def _each(self, random: Arrays, change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
        """Changed and kept within the ranges."""
        changed = {name: change(array) for name, array in random.items()}
        return {name: self._within(name, array).astype(random[name].dtype) for name, array in changed.items()}

    def _within(self, name: str, array: np.ndarray) -> np.ndarray:
        return np.clip(array, *self._ranges[name]) if name in self._ranges and array.dtype.kind in "iufV" else array

    def _not_finite(self, kind: str, name: str, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind not in "fc" or array.size == 0 or name in self._ranges:
            return array
        changed = array.copy()
        if kind == "inf":
            changed.flat[-1] = -np.inf
        changed.flat[0] = np.nan if kind == "nan" else np.inf
        return changed

    def random(self, size: int, words: Sequence[bytes]) -> Arrays:
        return {tensor.name: self._random(tensor, size, words) for tensor in self._tensors}

    def _random(self, tensor: Tensor, size: int, words: Sequence[bytes]) -> np.ndarray:
        """Numbers of the real inputs' range and kind; without those, standard normal, or integers 0 and 1."""
        name, dtype = tensor.name, tensor.dtype
        if self._known:
            shape: tuple[int, ...] = self._known[0][name].shape
        elif tensor.shape is None:
            raise ValueError(f"the rank of input {name!r} is unknown; give representative inputs")
        else:
            shape = tuple(size if dimension is None else dimension for dimension in tensor.shape)
        seen = np.concatenate([arrays[name].ravel() for arrays in self._known]) if self._known else None
        if dtype.kind == "O":
            return self._strings(shape, words if seen is None or not seen.size else list(seen))
        if dtype.kind == "b":
            return self._rng.integers(0, 2, shape).astype(bool)
        low, high = 0.0, 1.0
        if seen is not None and seen.size:
            wide = seen.astype(np.float64)
            low, high = wide.min(), wide.max()
        elif name in self._ranges:
            low, high = self._ranges[name]
        elif dtype.kind == "f":
            return self._rng.standard_normal(shape).astype(dtype)
        whole = seen is not None and seen.size and np.array_equal(np.round(wide), wide)  # a mask stays one
        if dtype.kind in "iu" or whole:
            return self._rng.integers(int(low), int(high), shape, endpoint=True).astype(dtype)
        return self._rng.uniform(low, high, shape).astype(dtype)

    def _strings(self, shape: tuple[int, ...], words: Sequence[bytes]) -> np.ndarray:
        found = np.empty(shape, object)
        found.flat[:] = [words[i] for i in self._rng.integers(0, len(words), found.size)] if found.size else []
        return found
