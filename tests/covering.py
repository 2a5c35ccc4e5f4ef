"""Which rows of a table of parameters run when: a covering array of a full cross, and all slow but a few.

``from covering import pairwise`` (pytest's ``pythonpath`` holds this folder), then::

    CROSS = list(itertools.product(SOURCES, COUNTS, DTYPES))                   # all of it: mark it ``exhaustive``
    @pytest.mark.parametrize(("source", "count", "dtype"), pairwise(SOURCES, COUNTS, DTYPES))
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from allpairspy import AllPairs


def slow_but(names: Iterable[Any], *fast: Any) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``, their texts as ids; all are marked slow but the ``fast`` ones."""
    names = list(names)
    assert set(fast) <= set(names), f"{set(fast) - set(names)} are none of {names}"
    return [pytest.param(name, id=str(name), marks=() if name in fast else pytest.mark.slow) for name in names]


def pairwise(*factors: Iterable[Any], allowed: Callable[..., bool] = lambda *row: True) -> list[tuple[Any, ...]]:
    """Rows with one value of each factor; any two values of two factors stand together in at least one row.

    A covering array of strength two, made by allpairspy: as long as the product of the two longest factors or little
    longer, and the same in every process (the workers of pytest-xdist must agree).

    Args:
        factors: at least two, each with at least one value.
        allowed: called with a whole row; pairs that only stand in rows which it refuses are left out.
    """
    values = [list(factor) for factor in factors]

    def row(indices: list[int]) -> list[Any]:
        return [of[index] for of, index in zip(values, indices, strict=False)]

    def kept(indices: list[int]) -> bool:
        return len(indices) < len(values) or allowed(*row(indices))

    # By index, since allpairspy compares values and an array or a lambda cannot be compared.
    covering = [tuple(indices) for indices in AllPairs([range(len(of)) for of in values], filter_func=kept)]
    # Where it has filled a row so far that ``allowed`` refuses what is left, it gives up pairs that other rows hold.
    covered = set().union(*map(_pairs, covering))
    for indices in itertools.product(*(range(len(of)) for of in values)):
        if not _pairs(indices) <= covered and kept(list(indices)):
            covering.append(indices)
            covered |= _pairs(indices)
    return [tuple(row(list(indices))) for indices in covering]


def _pairs(indices: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    return set(itertools.combinations(enumerate(indices), 2))
