"""Why a ``tf.function`` is traced again."""

import functools
import warnings
from collections.abc import Callable
from typing import Any


class RetracingWarning(UserWarning):
    """A function was traced again; the text says which argument was new."""


def explain_retracing(function: Any, *, allowed: int = 1) -> Callable[..., Any]:
    """Wrap a ``tf.function`` so that each trace beyond the first ``allowed`` ones is explained by a warning.

    A step of the trainer is never traced again, since its batches are all of one spec; this is for what you call
    yourself, such as an evaluation::

        evaluate_batch = trainers.explain_retracing(tf.function(evaluate_batch))
        # RetracingWarning: evaluate_batch was traced again (trace 2), since
        #   images: the shape was (32, 8, 8), now it is (5, 8, 8)

    Args:
        function: the ``tf.function``.
        allowed: how many traces are expected.

    Raises:
        TypeError: it isn't a ``tf.function``.
    """
    if not hasattr(function, "experimental_get_tracing_count"):
        raise TypeError(f"explain_retracing takes a tf.function, but got {function!r}")
    seen: list[dict[str, Any]] = []

    @functools.wraps(function.python_function)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = function.experimental_get_tracing_count()
        result = function(*args, **kwargs)
        count = function.experimental_get_tracing_count()
        if count > before:
            new = _signature(function, args, kwargs)
            if count > allowed:
                _warn(function, count, seen, new)
            seen.append(new)
        return result

    return call


def _signature(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Argument name -> what TensorFlow keeps of it to tell traces apart; nested arguments as name/key."""
    parameters = function.get_concrete_function(*args, **kwargs).function_type.parameters  # the trace there is already
    flat: dict[str, Any] = {}
    for name, parameter in parameters.items():
        _flatten(name, parameter.type_constraint, flat)
    return flat


def _flatten(name: str, kind: Any, flat: dict[str, Any]) -> None:
    mapping = getattr(kind, "mapping", None)
    components = getattr(kind, "components", None)
    if mapping is not None:
        for key, part in mapping.items():
            _flatten(f"{name}[{key!r}]", part, flat)
    elif components is not None and not hasattr(kind, "shape"):
        for index, part in enumerate(components):
            _flatten(f"{name}[{index}]", part, flat)
    else:
        flat[name] = kind


def _warn(function: Any, count: int, seen: list[dict[str, Any]], new: dict[str, Any]) -> None:
    nearest = min(seen, key=lambda old: len(_differences(old, new)), default={})
    reasons = _differences(nearest, new) or ["something that isn't an argument, e.g. a variable made in the function"]
    name = getattr(function.python_function, "__name__", repr(function))
    lines = "\n  ".join(reasons)
    warnings.warn(f"{name} was traced again (trace {count}), since\n  {lines}", RetracingWarning, stacklevel=3)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    lines = []
    for name in dict.fromkeys([*old, *new]):
        if name not in old or name not in new:
            lines.append(f"{name}: it is {'new' if name in new else 'absent now'}")
        elif old[name] != new[name]:
            lines.append(f"{name}: {_difference(old[name], new[name])}")
    return lines


def _difference(old: Any, new: Any) -> str:
    if hasattr(old, "shape") and hasattr(new, "shape"):
        changes = [
            f"the {what} was {before}, now it is {after}"
            for what, before, after in (("shape", old.shape, new.shape), ("dtype", old.dtype.name, new.dtype.name))
            if before != after
        ]
        return " and ".join(changes) or f"it was {old}, now it is {new}"
    if hasattr(old, "value") and hasattr(new, "value"):
        number = isinstance(new.value, (int, float)) and not isinstance(new.value, bool)
        remedy = "; a tensor would need no new trace" if number else ""
        return f"the Python value was {old.value!r}, now it is {new.value!r}{remedy}"
    return f"it was {_kind(old)}, now it is {_kind(new)}"


def _kind(trace_type: Any) -> str:
    if hasattr(trace_type, "shape"):
        return f"a tensor {trace_type.dtype.name}{trace_type.shape}"
    return f"the Python value {trace_type.value!r}" if hasattr(trace_type, "value") else f"{trace_type}"
