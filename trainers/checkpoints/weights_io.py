"""Weights in and out of flat files: name -> array, as npz or safetensors.

Unlike a checkpoint, such a file knows nothing of training; it is for passing weights on, and for starting from them
(transfer learning).
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.trainers.checkpoints import weight_files
from tftoolkit.trainers.checkpoints.weight_names import WeightNames, WeightRule
from tftoolkit.trainers.naming import matching, named_variables

_SHOWN = 10  # of what a report would list


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of each name; names are the model's unless said otherwise."""

    loaded: tuple[str, ...]
    """Read from the file."""
    differing: dict[str, str]
    """In both, with another shape or a dtype that doesn't hold the file's numbers -> how they differ."""
    missing: tuple[str, ...]
    """Not in the file."""
    unused: tuple[str, ...]
    """Only in the file (its names, renamed)."""
    reshaped: dict[str, str] = dataclasses.field(default_factory=dict)
    """Those loaded that lie in another way in the file -> how."""
    ignored: tuple[str, ...] = ()
    """Only in the file (its names), and no weights."""
    details: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """What there is to say about a missing or unused name."""

    def __str__(self) -> str:
        otherwise = f", {len(self.reshaped)} of them transposed or divided" if self.reshaped else ""
        lines = [f"{len(self.loaded)} variables loaded{otherwise}"]
        lines += _shown([f"differs: {name}: {how}" for name, how in self.differing.items()])
        for what, names in (("missing in the file", self.missing), ("not in the model", self.unused)):
            lines += _shown([f"{what}: {name}{self.details.get(name, '')}" for name in names])
        return "\n  ".join(lines)


def save_weights(model: Any, path: str | os.PathLike[str], *, names: WeightNames | None = None) -> None:
    """Write all variables of ``model`` (tf.Module or Keras) under their stable names.

    The file appears at once or not at all.

    Args:
        path: ends with ".npz" or ".safetensors".
        names: others' names for them, as of ``models.torch_names``, and the layout that goes with these.

    Raises:
        ValueError: another ending; bfloat16 in an npz file, which can't hold it; ``names`` has none for a variable.
        ImportError: safetensors isn't installed.
    """
    path = Path(path)
    ending = weight_files.check_ending(path)
    arrays = {name: variable.numpy() for name, variable in named_variables(model).items()}
    metadata = {}
    if names is not None:
        arrays, metadata = names.written(arrays), {"format": "pt"}  # without which Transformers takes no file
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        weight_files.write(temporary, arrays, ending, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(
    model: Any,
    path: str | os.PathLike[str],
    *,
    names: WeightNames | None = None,
    rename: Mapping[str, str] | None = None,
    partial: bool = False,
) -> LoadReport:
    """Read variables of ``model`` (tf.Module or Keras) from a file by name.

    Args:
        path: ends with ".npz", ".safetensors", or ".safetensors.index.json", which names files that lie beside it.
        names: which of the file's tensors are which variables, and how they lie there: ``models.torch_names("gpt2")``.
        rename: pattern of names in the file -> name in the model (with ``names``, before these are looked up), before
            anything is compared. ``*`` stands for anything, in order: ``{"encoder/*": "backbone/*"}``.
        partial: load what fits and report the rest. Otherwise everything must fit, or nothing is loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, a pickle, or has another ending; something doesn't fit (the text is the
            report); with ``partial``, nothing fits; a rename pattern matches nothing, or two names become one; tensors
            that are one variable here differ. The model is as it was.
        ImportError: safetensors isn't installed.
    """
    path = Path(path)
    arrays = _renamed(weight_files.read(path), rename or {})
    variables = named_variables(model)
    arrivals, others = _arrivals(arrays, variables, names)
    report = _report(arrivals, others, arrays, variables, names)
    if not partial and (report.differing or report.missing or report.unused):
        raise ValueError(f"{path} doesn't fit the model (partial=True loads what fits): {report}")
    if not report.loaded:
        raise ValueError(f"nothing in {path} fits the model: {report}")
    for name in report.loaded:
        variables[name].assign(arrivals[name].array.astype(variables[name].dtype.as_numpy_dtype))
    return report


@dataclasses.dataclass(frozen=True)
class _Arrival:
    """What a file has for a variable."""

    source: str
    array: np.ndarray
    problem: str = ""


def _arrivals(
    arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any], names: WeightNames | None
) -> tuple[dict[str, _Arrival], list[str]]:
    """What arrives for each variable; and the file's other names."""
    if names is None:
        common = {name: _Arrival(name, array) for name, array in arrays.items() if name in variables}
        return common, sorted(arrays.keys() - common.keys())
    places: list[tuple[int, str, tuple[str, ...]]] = []
    others = []
    for source in sorted(arrays):
        found = names.found(source, variables)
        if found is None:
            others.append(source)
        else:
            places.append((found[0], source, found[1]))
    arrivals: dict[str, _Arrival] = {}
    for number, source, targets in sorted(places):
        for target, arrival in zip(targets, _converted(names.rules[number], source, arrays[source]), strict=True):
            if target in arrivals:
                _check_equal(target, arrivals[target], arrival)
            elif target in variables:
                arrivals[target] = arrival
    return arrivals, others


def _converted(rule: WeightRule, source: str, array: np.ndarray) -> list[_Arrival]:
    """What a tensor of the file is here, one for each variable of the rule."""
    if rule.axes is not None and array.ndim != len(rule.axes):
        problem = f"{_described(array)} in the file, which should have {len(rule.axes)} axes"
    elif parts := rule.converted(array):
        return [_Arrival(source, part) for part in parts]
    else:
        problem = f"{_described(array)} in the file, which can't be divided by {len(rule.targets)}"
    return [_Arrival(source, array, problem)] * len(rule.targets)


def _check_equal(name: str, one: _Arrival, other: _Arrival) -> None:
    if not np.array_equal(one.array, other.array):
        raise ValueError(
            f"{one.source} and {other.source} differ in the file, but are one variable of the model, {name}: "
            "make a model whose weights aren't tied, if there is such a setting"
        )


def _report(
    arrivals: Mapping[str, _Arrival],
    others: list[str],
    arrays: Mapping[str, np.ndarray],
    variables: Mapping[str, Any],
    names: WeightNames | None,
) -> LoadReport:
    differing = {
        name: how
        for name, arrival in arrivals.items()
        if (how := arrival.problem or _difference(arrival.array, variables[name]))
    }
    loaded = tuple(name for name in variables if name in arrivals and name not in differing)
    ignored = [name for name in others if names is not None and names.is_ignored(name)]
    unused = [name for name in others if name not in ignored]
    missing = sorted(variables.keys() - arrivals.keys())
    details = {name: f" ({_described(arrays[name])})" for name in unused}
    details |= {name: _sought(name, variables[name], unused, arrays, names) for name in missing[:_SHOWN]}
    return LoadReport(
        *(loaded, differing, tuple(missing), tuple(unused)),
        reshaped={
            name: f"{arrival.source} {list(arrays[arrival.source].shape)} → {list(arrival.array.shape)}"
            for name, arrival in arrivals.items()
            if name in loaded and arrival.array is not arrays[arrival.source]
        },
        ignored=tuple(ignored),
        details=details,
    )


def _sought(name: str, variable: Any, unused: list[str], arrays: Mapping[str, Any], names: WeightNames | None) -> str:
    """The variable's shape, the name that the file should have, and names of the file that are like it."""
    wanted = [name] if names is None else list(names.sources(name)) or [name]
    plain = str if names is None else names.plain
    known = {plain(name): name for name in unused}
    near = [known[like] for like in difflib.get_close_matches(plain(wanted[0]), known, n=2, cutoff=0.5)]
    text = f" ({_described(variable)}"
    if names is not None:
        text += f", sought as {' or '.join(wanted[:3])}"
    if near:
        text += f"; nearest in the file: {', '.join(f'{one} {_described(arrays[one])}' for one in near)}"
    return f"{text})"


def _shown(lines: list[str]) -> list[str]:
    return lines[:_SHOWN] + ([f"… and {len(lines) - _SHOWN} more like that"] if lines[_SHOWN:] else [])


def _difference(array: np.ndarray, variable: tf.Variable) -> str:
    """Empty if the variable can hold the array's numbers."""
    dtype = variable.dtype.as_numpy_dtype
    if array.shape == tuple(variable.shape) and np.can_cast(array.dtype, dtype, "safe"):
        return ""
    return f"{_described(array)} in the file, {_described(variable)} here"


def _described(value: Any) -> str:
    return f"{value.dtype.name}{list(value.shape)}"


def _renamed(arrays: dict[str, np.ndarray], rename: Mapping[str, str]) -> dict[str, np.ndarray]:
    names = {name: name for name in arrays}
    for pattern, matched in matching(rename, list(arrays), "rename").items():
        expression = re.compile("(.*)".join(map(re.escape, pattern.split("*"))))
        for name in matched:
            if names[name] != name:
                raise ValueError(f"rename: {name!r} matches more than one pattern")
            parts = iter(expression.fullmatch(name).groups())  # type: ignore[union-attr]
            names[name] = re.sub(r"\*", lambda _, parts=parts: next(parts), rename[pattern])  # type: ignore[misc]
    if len(set(names.values())) < len(names):
        twice = sorted({new for new in names.values() if list(names.values()).count(new) > 1})
        raise ValueError(f"rename: several names in the file become {', '.join(twice)}")
    return {names[name]: array for name, array in arrays.items()}
