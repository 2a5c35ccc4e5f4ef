"""The inputs a file is proven on: real ones from the caller, random ones, zeros, large numbers and NaN."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tftoolkit.export.runtimes.runtime import Arrays, Signature, checked_inputs, default_signature

# A data set of dicts of named inputs, a callable that returns one, or a dict from signature name to either.
Representative = (
    Iterable[Mapping[str, Any]]
    | Callable[[], Iterable[Mapping[str, Any]]]
    | Mapping[str, Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]]
)
MAX_EXAMPLES = 512  # a pipeline may be endless
LARGE = 1e3  # times the random inputs


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of one signature; ``kind`` is real, random, zeros, large or nan (one in each array)."""

    kind: str
    signature: str
    inputs: Arrays


def real_inputs(representative: Representative | None, signatures: Mapping[str, Signature]) -> dict[str, list[Arrays]]:
    """Up to ``MAX_EXAMPLES`` examples for each signature, checked.

    Raises ValueError that names the argument where names, shapes or dtypes are not the signature's.
    """
    if representative is None:
        return {}
    by_signature: Mapping[str, Any]
    if isinstance(representative, Mapping):
        by_signature = representative
        if not set(by_signature) <= set(signatures):
            raise ValueError(
                f"representative names signatures {sorted(by_signature)}; the model has {sorted(signatures)}"
            )
    else:
        by_signature = {default_signature(signatures): representative}
    return {name: list(_checked(name, signatures[name], source)) for name, source in by_signature.items()}


def _checked(name: str, signature: Signature, source: Any) -> Iterator[Arrays]:
    examples = 0
    try:
        iterator = iter(source() if callable(source) else source)
    except TypeError as error:
        raise ValueError(
            f"representative must be an iterable of dicts of named inputs, or a callable that returns one: {error}"
        ) from error
    for position, item in enumerate(iterator):
        try:
            arrays = checked_inputs(name, signature, item)
        except ValueError as error:
            raise ValueError(f"representative, item {position}: {error}") from error
        yield arrays
        examples += examples_in(arrays)
        if examples >= MAX_EXAMPLES:
            return


def examples_in(arrays: Arrays) -> int:
    """The batch size: the leading dimension of the first input (1 where there is none)."""
    first = next(iter(arrays.values()), np.zeros(()))
    return first.shape[0] if first.ndim else 1


def cases(signatures: Mapping[str, Signature], real: Mapping[str, list[Arrays]], seed: int = 0) -> list[Case]:
    """All inputs of a proof. Raises ValueError where an input's rank is unknown and there are no real inputs."""
    rng = np.random.default_rng(seed)
    found = []
    for name, signature in signatures.items():
        known = real.get(name, [])
        found += [Case("real", name, arrays) for arrays in known]
        # Two sizes for the free dimensions: a batch size that was frozen by mistake shows.
        shapes = [known[0]] if known else [None, None]
        for size, example in zip((1, 3), shapes, strict=False):
            random = {tensor.name: _random(tensor, size, example, known, rng) for tensor in signature.inputs}
            found.append(Case("random", name, random))
        zeros = {key: array if array.dtype == object else np.zeros_like(array) for key, array in random.items()}
        large = {key: array if array.dtype.kind in "biuO" else array * LARGE for key, array in random.items()}
        found.append(Case("zeros", name, zeros))
        found.append(Case("large", name, {key: array.astype(random[key].dtype) for key, array in large.items()}))
        found.append(Case("nan", name, {key: _with_nan(array) for key, array in random.items()}))
    return found


def _with_nan(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fc" or array.size == 0:
        return array
    changed = array.copy()
    changed.flat[0] = np.nan
    return changed


def latency_inputs(signature: Signature, real: list[Arrays]) -> Arrays:
    """One example: the first real one where there is any, else random."""
    rng = np.random.default_rng(0)
    inputs = real[0] if real else {tensor.name: _random(tensor, 1, None, [], rng) for tensor in signature.inputs}
    free = {tensor.name for tensor in signature.inputs if tensor.shape is not None and tensor.shape[:1] == (None,)}
    return {name: array[:1] if name in free else array for name, array in inputs.items()}


def _random(
    tensor: Any, size: int, example: Arrays | None, known: list[Arrays], rng: np.random.Generator
) -> np.ndarray:
    """Random numbers in the range of the real inputs; without those, standard normal, or integers 0 and 1."""
    if example is not None:
        shape: tuple[int, ...] = example[tensor.name].shape
    elif tensor.shape is None:
        raise ValueError(f"the rank of input {tensor.name!r} is unknown; give representative inputs")
    else:
        shape = tuple(size if dimension is None else dimension for dimension in tensor.shape)
    if tensor.dtype == object:
        return np.full(shape, b"", object)
    if tensor.dtype == bool:
        return rng.integers(0, 2, shape).astype(bool)
    low, high = 0.0, 1.0
    if known:
        everything = np.concatenate([arrays[tensor.name].astype(np.float64).ravel() for arrays in known])
        low, high = (everything.min(), everything.max()) if everything.size else (0.0, 1.0)
    elif tensor.dtype.kind == "f":
        return rng.standard_normal(shape).astype(tensor.dtype)
    if tensor.dtype.kind in "iu":
        return rng.integers(int(low), int(high), shape, endpoint=True).astype(tensor.dtype)
    return rng.uniform(low, high, shape).astype(tensor.dtype)
