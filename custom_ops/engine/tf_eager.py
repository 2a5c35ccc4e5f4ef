"""Eager calls of ops without lists, past most of what ``tf_host.call`` does in Python."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context, core
from tensorflow.python.framework import ops as tf_ops

from tftoolkit.custom_ops.engine import tf_host
from tftoolkit.custom_ops.engine.declaration import Declaration
from tftoolkit.custom_ops.engine.op_def import node_name, store_attribute
from tftoolkit.custom_ops.engine.schema import DTYPES, presence


def quick_call(op: Declaration) -> Callable[[tuple[Any, ...], dict[str, Any], str | None], Any] | None:
    """A function of inputs, attributes and a name that calls the op; NotImplemented: ``tf_host.call`` must.

    It is for eager tensors and attributes that were given before, whose stored form it keeps: what that does in
    Python for any caller takes as long as TensorFlow takes for the op. None for ops with lists.
    """
    if op.schema.has_lists:
        return None
    op_type, count = tf_host.register(op), len(op.schema.inputs)
    optional = {i for i, argument in enumerate(op.schema.inputs) if argument.optional}
    alone = len(op.schema.outputs) == 1 and not op.schema.optional_outputs
    known: dict[Any, _Known] = {}
    last: tuple[tuple[int, ...], dict[str, Any], _Known | None] = (), {}, None
    eager, execute = tf_ops.EagerTensor, pywrap_tfe.TFE_Py_FastPathExecute  # to look them up costs, too

    def call(inputs: tuple[Any, ...], keywords: dict[str, Any], name: str | None) -> Any:
        nonlocal last
        runtime = context.context()
        if len(inputs) != count or not runtime.executing_eagerly():
            return NotImplemented
        absent: tuple[int, ...] = ()
        for value in inputs:
            if type(value) is not eager:
                lacking = _absent(inputs)
                if lacking is None or not optional.issuperset(lacking):
                    return NotImplemented
                absent = lacking
                break
        before, given, found = last  # another thread may put another in its place
        for label, value in keywords.items():  # the very objects of the call before: defaults, constants
            if given.get(label, _MISSING) is not value:
                found = None
                break
        if found is None or before != absent or len(given) != len(keywords):
            try:
                key = (absent, *keywords.items(), *map(type, keywords.values()))  # 1, 1.0 and True are equal
                found = known.get(key) or _remember(op, absent, keywords, known, key)
            except TypeError:  # a list, or an attribute that is not right
                return NotImplemented
            for attribute in found.zeros:
                if math.copysign(1, keywords[attribute]) < 0:  # -0.0 is equal to 0.0
                    return NotImplemented
            last = absent, keywords, found
        if absent:
            inputs = found.filled(inputs)
        try:
            outputs = execute(runtime, op_type, name, *inputs, *found.flat)
        except core._NotOkStatusException as error:
            tf_ops.raise_from_not_ok_status(error, name)
        except core._FallbackException:
            return NotImplemented
        return outputs if alone else found.group(outputs)

    return call


_MISSING = object()


def _absent(inputs: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Which inputs are None; None where one is not but is no eager tensor either."""
    found: tuple[int, ...] = ()
    for i, value in enumerate(inputs):
        if value is None:
            found += (i,)
        elif type(value) is not tf_ops.EagerTensor:
            return None
    return found


class _Known(NamedTuple):
    flat: list[Any]  # names and values of attributes in turn, as TensorFlow stores them
    zeros: list[str]  # the attributes that are 0.0
    # An absent input, and which other is of its dtype, or what takes its place.
    fillers: list[tuple[int, int | tf.Tensor]]
    group: Callable[[Sequence[Any]], Any]  # flat outputs → what the caller gets

    def filled(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """With empty tensors in the place of absent inputs."""
        tensors = list(inputs)
        for place, source in self.fillers:
            tensors[place] = tf_host.empty(inputs[source]._datatype_enum()) if isinstance(source, int) else source
        return tuple(tensors)


_MOST_KNOWN = 100  # of an op that is given a new number in each step, only the first ones


def _remember(
    op: Declaration, absent: tuple[int, ...], keywords: dict[str, Any], known: dict[Any, _Known], key: Any
) -> _Known:
    complete = op.complete(keywords)
    stored = {node_name(item): store_attribute(item, complete[item.name]) for item in op.schema.attributes}
    stored |= {presence(item): i not in absent for i, item in enumerate(op.schema.inputs) if item.optional}
    zeros = [label for label, value in keywords.items() if isinstance(value, float) and value == 0]
    missing = [output.optional and not complete[presence(output)] for output in op.schema.outputs]
    group: Callable[[Sequence[Any]], Any] = op.output_type._make  # type: ignore[attr-defined]
    if any(missing):
        group = functools.partial(op.group_outputs, list_length=0, attributes=complete)
    flat = [item for pair in stored.items() for item in pair]
    found = _Known(flat, zeros, [(place, _filler(op, place, absent)) for place in absent], group)
    simple = all(type(value) in (bool, int, float, str) for value in keywords.values())
    if simple and len(known) < _MOST_KNOWN and not any(math.copysign(1, keywords[label]) < 0 for label in zeros):
        known[key] = found
        return found
    return found._replace(zeros=[])


def _filler(op: Declaration, place: int, absent: Sequence[int]) -> int | tf.Tensor:
    """Which given input has the dtype of an absent one; where none has, an empty tensor."""
    wanted = op.schema.inputs[place].dtype
    if wanted not in DTYPES:
        for i, argument in enumerate(op.schema.inputs):
            if argument.dtype == wanted and i not in absent:
                return i
    dtype = tf_host.dtype_for(op, op.schema.inputs[place], [None] * len(op.schema.inputs))
    return tf_host.empty(dtype.as_datatype_enum)
