"""Which tensor of somebody else's file is which variable of a model, and how it lies there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """Tensors of a file that are variables of a model.

    Patterns are names in which each ``*`` stands for one or more characters without dots and slashes, the same in all
    patterns of the rule, in their order: ``WeightRule("blocks/*/up/kernel", "h.*.mlp.c_fc.weight", axes=(1, 0))``.
    """

    names: str | tuple[str, ...]
    """Patterns of the model's names. Several: the tensor is divided among them, evenly along its last axis here."""
    source: str
    """Pattern of the file's names."""
    axes: tuple[int, ...] | None = None
    """The file's axes in the order that they have here, as of ``np.transpose``; None: the same."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The patterns of the model's names, one or several."""
        return (self.names,) if isinstance(self.names, str) else self.names

    def converted(self, array: np.ndarray) -> list[np.ndarray]:
        """An array for each target; none if it can't be divided."""
        array = array if self.axes is None else np.transpose(array, self.axes)
        parts = len(self.targets)
        if parts == 1:
            return [array]
        return np.split(array, parts, axis=-1) if array.ndim and array.shape[-1] % parts == 0 else []

    def joined(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The reverse of ``converted``."""
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        return array if self.axes is None else np.transpose(array, np.argsort(self.axes))


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """How the files of an architecture name what a model has, for ``load_weights`` and ``save_weights``."""

    rules: tuple[WeightRule, ...]
    """For each of the file's names the first counts whose targets the model has. Where several tensors are one variable
    (other spellings, tied weights) the first rule's is loaded, and the others must be equal to it."""
    renames: tuple[tuple[str, str], ...] = ()
    """Regular expressions and what takes the place of what they match, in names of the file and of the rules alike,
    before they are compared: prefixes that may be there, other spellings."""
    ignored: tuple[str, ...] = ()
    """Patterns of the file's names that are no weights: counters, masks."""

    def plain(self, name: str) -> str:
        """A name of the file, or a pattern, without what may differ."""
        for expression, replacement in self.renames:
            name = re.sub(expression, replacement, name)
        return name

    def is_ignored(self, name: str) -> bool:
        """Whether the file's tensor of this name is no weight."""
        return any(_stars(self.plain(pattern), self.plain(name)) is not None for pattern in self.ignored)

    def found(self, name: str, variables: Collection[str]) -> tuple[int, tuple[str, ...]] | None:
        """The number of the rule for this name of the file, and the names of its variables."""
        name = self.plain(name)
        for number, rule in enumerate(self.rules):
            stars = _stars(self.plain(rule.source), name)
            if stars is not None:
                targets = tuple(_filled(target, stars) for target in rule.targets)
                if any(target in variables for target in targets):
                    return number, targets
        return None

    def sources(self, variable: str) -> Iterator[str]:
        """The names under which a variable may stand in a file."""
        for rule in self.rules:
            for target in rule.targets:
                stars = _stars(target, variable)
                if stars is not None:
                    yield _filled(rule.source, stars)

    def written(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a file holds of variables with these names, each once, by the first rule for it.

        Raises:
            ValueError: there is no rule for a variable, or only a part of a tensor is here.
        """
        file: dict[str, np.ndarray] = {}
        done: set[str] = set()
        for rule in self.rules:
            for variable in [name for name in arrays if name not in done]:
                stars = _stars(rule.targets[0], variable)
                targets = [] if stars is None else [_filled(target, stars) for target in rule.targets]
                if stars is not None and all(target in arrays for target in targets):
                    file[_filled(rule.source, stars)] = rule.joined([arrays[target] for target in targets])
                    done.update(targets)
        if left := sorted(arrays.keys() - done):
            raise ValueError(f"there is no rule for {', '.join(left[:10])}{', …' if left[10:] else ''}")
        return file


def _stars(pattern: str, name: str) -> tuple[str, ...] | None:
    """What the stars of a pattern stand for in a name; None if it does not match."""
    found = re.fullmatch("([^./]+)".join(map(re.escape, pattern.split("*"))), name)
    return None if found is None else found.groups()


def _filled(pattern: str, stars: tuple[str, ...]) -> str:
    for text in stars:
        pattern = pattern.replace("*", text, 1)
    return pattern
