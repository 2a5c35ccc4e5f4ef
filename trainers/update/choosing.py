"""Which weights a pattern of names means, and what is given for each weight."""

import math
from collections.abc import Iterable, Mapping, Sequence

from tftoolkit.trainers import naming
from tftoolkit.trainers.update.optimizers import Optimizer


def rate_factors(names: list[str], factors: Mapping[str, float]) -> list[float]:
    found = dict.fromkeys(names, 1.0)
    chosen_by: dict[str, str] = {}
    for pattern, matched in naming.matching(factors, names, "learning_rate_factors").items():
        if not (math.isfinite(factors[pattern]) and factors[pattern] >= 0):
            raise ValueError(f"learning_rate_factors[{pattern!r}] must not be negative, but is {factors[pattern]}")
        for name in matched:
            if name in chosen_by:
                raise ValueError(f"learning_rate_factors: {name!r} matches both {chosen_by[name]!r} and {pattern!r}")
            chosen_by[name] = pattern
            found[name] = float(factors[pattern])
    return list(found.values())


def matched(patterns: Sequence[str], names: Iterable[str], what: str) -> set[str]:
    if isinstance(patterns, str):
        raise TypeError(f"{what} must be a sequence of patterns, but is the string {patterns!r}")
    return {name for found in naming.matching(patterns, list(names), what).values() for name in found}


def decays(names: list[str], excluded: Sequence[str], optimizer: Optimizer) -> list[bool]:
    without = matched(excluded, names, "no_weight_decay")
    if excluded and optimizer.weight_decay is None:
        raise ValueError("no_weight_decay: this optimizer has no weight decay")
    return [name not in without for name in names]
