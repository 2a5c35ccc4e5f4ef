"""The emulated twin of an op: the same name, schema, reference and gradient, but its CUDA kernel, run on the CPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

from tftoolkit.custom_ops.engine import library, ops
from tftoolkit.custom_ops.engine.declaration import Library
from tftoolkit.custom_ops.engine.errors import LoadError
from tftoolkit.custom_ops.engine.library import OpLibrary
from tftoolkit.custom_ops.engine.ops import Op

_SUFFIX = "Emulated"  # of the library's namespace in TensorFlow, where both are registered


def twin(op: Op) -> Op:
    """The op with its CUDA kernel in emulation; an emulated op is its own twin.

    Raises LoadError when it has no CUDA kernel or when its library was opened from a compiled file, BuildError when the
    .cu files do not compile.
    """
    if is_emulated(op):
        return op
    other: Op = _twin_library(cast(OpLibrary, op.library)).op(op.name)
    if not other.handlers:
        raise LoadError(
            f"{op.name} has no CUDA kernel to emulate; its library {op.library.name} has some for others",
            code="op-no-kernel",
        )
    for name in other.library.schemas:
        _connect(op.library.op(name), other.library.op(name))
    return other


def has_kernel(op: Op) -> bool:
    """Whether the op has a CUDA kernel; others of its library may. Raises what ``twin`` raises for the library."""
    opened = cast(OpLibrary, op.library) if is_emulated(op) else _twin_library(cast(OpLibrary, op.library))
    return bool(opened.handlers[op.name])


def is_emulated(op: Op) -> bool:
    """Whether the op's kernel is an emulated CUDA kernel."""
    origin = library.origin(op.library)
    return origin is not None and origin.cuda == "emulated"


@contextlib.contextmanager
def emulated(*chosen: Op) -> Iterator[None]:
    """Within, in this thread, calls of these ops, and of all ops of their libraries, are calls of their twins.

    Traced functions keep what was called while they were traced. Raises what ``twin`` raises.
    """
    stand_ins: dict[Op, Op] = {}
    for op in chosen:
        other = twin(op)
        stand_ins |= _stand_ins(op.library, other.library)
    with ops.standing_in(stand_ins):
        yield


def _stand_ins(original: Library, other: Library) -> dict[Op, Op]:
    return {original.op(name): other.op(name) for name in other.schemas if other.handlers[name]}


@functools.cache
def _twin_library(original: OpLibrary) -> OpLibrary:
    origin = library.origin(original)
    if origin is None:
        raise LoadError(
            f"the sources of library {original.name} are not known, since it was opened as the file {original.path}: "
            "load it with custom_ops.load to emulate its CUDA kernels",
            code="op-no-kernel",
        )
    if not any(source.suffix == ".cu" for source in origin.sources):
        listed = ", ".join(source.name for source in origin.sources)
        raise LoadError(
            f"library {original.name} has no CUDA kernel to emulate; its sources are {listed}", code="op-no-kernel"
        )
    return library.load(f"{original.name}{_SUFFIX}", origin.sources, cuda="emulated", **origin.options)


def _connect(op: Op, other: Op) -> None:
    """Gives the twin the op's reference and gradient, as they are now; the gradient calls twins, too."""
    other.reference_function = op.reference_function
    if op.differentiates_reference:
        if not other.differentiates_reference:
            other.differentiate_reference()
    elif op.gradient_function is not None and other.gradient_function is None:
        other.gradient(_of_twins(op, other), sparse=op.takes_sparse_gradients)


def _of_twins(op: Op, other: Op) -> Callable[..., Any]:
    stand_ins = _stand_ins(op.library, other.library)

    def gradient(*arguments: Any) -> Any:
        assert op.gradient_function is not None
        with ops.standing_in(stand_ins):
            return op.gradient_function(*arguments)

    return gradient
