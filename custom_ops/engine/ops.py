"""Ops as Python callables. Needs neither TensorFlow nor JAX: ``tf_host`` and ``jax_host`` load on first use."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from absl import logging

from tftoolkit.custom_ops.engine.declaration import Declaration, Library


def find(op_type: str) -> Op | None:
    """The op with this TensorFlow name, such as "TfToolkit>RmsNorm", or None if none was used in this process."""
    from tftoolkit.custom_ops.engine import tf_host

    found = tf_host.find(op_type)
    assert found is None or isinstance(found, Op)
    return found


_stand_ins: contextvars.ContextVar[Mapping[Op, Op]] = contextvars.ContextVar("stand-ins", default={})  # noqa: B039
_ever_stood_in = False  # asked in every call, where a context variable would cost


@contextlib.contextmanager
def standing_in(others: Mapping[Op, Op]) -> Iterator[None]:
    """Within, in this thread, a call of a key is a call of its value, an op with the same schema."""
    global _ever_stood_in
    _ever_stood_in = True
    token = _stand_ins.set({**_stand_ins.get(), **others})
    try:
        yield
    finally:
        _stand_ins.reset(token)


class Op(Declaration):
    """A compiled op: ``op(x, gamma, epsilon=1e-6)`` returns a tensor, a list, or a named tuple of them.

    Inputs are whatever TensorFlow converts to a tensor (a list of them for ``*name``, None for an absent ``name?``), or
    JAX arrays; attributes are Python values and go by keyword. In TensorFlow it works eagerly, in ``tf.function``,
    under ``jit_compile=True``, in ``tf.vectorized_map`` and through a SavedModel; in JAX also under ``jax.jit``.

    Raises ``tf.errors.InvalidArgumentError`` (in JAX and while a graph is built ValueError) when ranks or dimensions do
    not fit the schema, TypeError for missing, unknown or ill-typed arguments.
    """

    autograph_info__ = True  # to TensorFlow's AutoGraph: nothing to convert in here

    def __init__(self, library: Library, name: str) -> None:
        super().__init__(library, name)
        self._quick: Callable[..., Any] | None = None  # tf_eager's, from the first call in TensorFlow on
        self.__doc__ = f"{self}\n\nA compiled op of library {library.name}, {library.path.name}."
        if "tensorflow" in sys.modules:  # else on first use, so that JAX users need neither TensorFlow nor its host
            _ = self.tf_name

    # There is one object for each op: TensorFlow knows it by its name.

    def __copy__(self) -> Op:
        return self

    def __deepcopy__(self, memo: Any) -> Op:
        return self

    def __reduce__(self) -> tuple[Callable[..., Op], tuple[Any, ...]]:
        """Another process opens the library, and imports the modules that gave the op its reference and gradient."""
        functions = (self.reference_function, self.gradient_function)
        modules = {function.__module__ for function in functions if function is not None} - {"__main__", __name__}
        return _reopen, (self.library, self.name, tuple(sorted(modules)))

    @property
    def tf_name(self) -> str:
        """The op's type in TensorFlow graphs; registers it there on first use."""
        from tftoolkit.custom_ops.engine import tf_host

        return tf_host.register(self)

    def __call__(self, /, *inputs: Any, name: str | None = None, **keywords: Any) -> Any:
        if _ever_stood_in and self in _stand_ins.get():
            return _stand_ins.get()[self](*inputs, name=name, **keywords)
        quick = self._quick
        if quick is not None:
            outputs = quick(inputs, keywords, name)
            if outputs is not NotImplemented:
                return outputs
        if len(inputs) != len(self.schema.inputs) or not keywords.keys() <= self._attributes.keys():
            inputs, keywords = self._bind(inputs, keywords)
        attributes = self.complete(keywords)
        if "jax" in sys.modules and is_jax(inputs):
            from tftoolkit.custom_ops.engine import jax_host

            return jax_host.call(self, inputs, attributes)
        from tftoolkit.custom_ops.engine import tf_eager, tf_host

        outputs = tf_host.call(self, inputs, attributes, name)
        if quick is None and self.handlers:
            self._quick = tf_eager.quick_call(self)
        return outputs

    def reference(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: ``function(x, ..., *, attribute)`` computes the same in plain TensorFlow ops, for any rank."""
        self.reference_function = function
        return function

    def gradient(self, function: Callable[..., Any] | None = None, *, sparse: bool = False) -> Callable[..., Any]:
        """Decorator: ``function(op, *output_gradients) -> input gradients``, as for ``tf.RegisterGradient``.

        ``op`` has ``inputs``, ``outputs`` (lists laid flat) and ``get_attr(name)``. A later function replaces an
        earlier one.

        Args:
          sparse: hand over output gradients as TensorFlow has them, ``tf.IndexedSlices`` where the output goes into
            ``tf.gather``. Otherwise all are dense tensors.
        """
        if function is None:
            return functools.partial(self.gradient, sparse=sparse)
        if self.gradient_function not in (None, function):
            logging.warning(
                "tftoolkit: %s>%s has a new gradient, from %s; functions traced with the old one keep it",
                self.library.name, self.name, function.__module__,
            )  # fmt: skip
        self.gradient_function = function
        self.takes_sparse_gradients = sparse
        self.differentiates_reference = False
        return function

    def differentiate_reference(self) -> None:
        """Makes the reference's own gradient the op's: right to any order, at plain TensorFlow's speed."""

        def gradient(node: Any, *output_gradients: Any) -> Any:
            from tftoolkit.custom_ops.engine import tf_host

            return tf_host.differentiate_reference(self, node, *output_gradients)

        self.gradient(gradient)
        self.differentiates_reference = True

    def _bind(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            bound = self.__signature__.bind(*inputs, **keywords).arguments
        except TypeError as error:
            raise TypeError(f"{error}; the signature is {self}") from None
        names = [argument.name for argument in self.schema.inputs]
        return tuple(bound.pop(argument, None) for argument in names), bound


def _reopen(library: Library, name: str, modules: Iterable[str]) -> Op:
    for module in modules:
        importlib.import_module(module)
    return library.op(name)


def is_jax(inputs: Iterable[Any]) -> bool:
    """Whether any of the inputs is a JAX array or tracer."""
    array = sys.modules["jax"].Array
    return any(
        isinstance(item, array) for value in inputs for item in (value if isinstance(value, list | tuple) else [value])
    )
