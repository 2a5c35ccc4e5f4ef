"""A call that a file is proven on, and the real inputs that the caller gives."""

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


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of one signature.

    ``kind`` is real, or of the made-up ones of ``made_up``. ``only``: the input whose values make the kind, in a call
    that is there for the case that TensorFlow takes no call of this kind in which all inputs have such values.
    """

    kind: str
    signature: str
    inputs: Arrays
    only: str | None = None


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
