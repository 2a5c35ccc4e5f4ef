"""Records that are ``tf.train.Example`` protocol buffers, to rows and back.

The format knows lists of int64, float32 and bytes. All other dtypes are stored as one byte string per feature, which
holds the values row-major and little-endian; only features given as ``tf.TensorSpec`` can have them.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.sources.source import Example, Spec, varies

_LISTS = (tf.int64, tf.float32, tf.string)
_SAME_BITS = {tf.uint32: tf.int32, tf.uint64: tf.int64}  # tf.io.decode_raw does not know the former


class ExampleParser:
    """Parses records with ``features``: name -> tf.io.FixedLenFeature, VarLenFeature, RaggedFeature (without
    partitions), FixedLenSequenceFeature or tf.TensorSpec, of which only the first dimension may be None.

    VarLenFeature and RaggedFeature are [None]; FixedLenSequenceFeature is [None, ...].
    """

    def __init__(self, features: Mapping[str, Any]) -> None:
        if not isinstance(features, Mapping) or not features:
            raise TypeError(f"features: expected a dict of tf.io.FixedLenFeature or tf.TensorSpec, got {features!r}")
        self._features: dict[str, Any] = {}
        self.element_spec: Spec = {}
        for name, feature in features.items():
            self._features[name], self.element_spec[name] = _checked(name, feature)

    def parse(self, records: tf.Tensor, names: tf.Tensor) -> Example:
        """Records string[n] to rows; errors call them by ``names``, string[n]."""
        with tf.control_dependencies([_refuse_what_is_no_example(records, names)]):
            parsed = tf.io.parse_example(records, self._features, names)
        return {name: self._shaped(name, parsed[name], names) for name in self._features}

    def _shaped(self, name: str, value: Any, names: tf.Tensor) -> Any:
        spec = self.element_spec[name]
        if spec.dtype not in _LISTS:
            return _from_bytes(name, value, spec, names)
        if varies(spec) and spec.shape.rank > 1:
            width = spec.shape[1:].num_elements()
            lengths = value.row_lengths()
            check = _refuse_where(lengths % width != 0, names, f"feature {name!r} does not fill whole rows of {width}")
            with tf.control_dependencies([check]):
                flat = tf.reshape(value.flat_values, [-1, *spec.shape[1:]])
            return tf.RaggedTensor.from_row_lengths(flat, lengths // width, validate=False)
        return value


def _checked(name: str, feature: Any) -> tuple[Any, tf.TensorSpec]:
    """What tf.io.parse_example needs for a feature, and what comes out in the end."""
    if isinstance(feature, tf.TensorSpec):
        spec = tf.TensorSpec(feature.shape, feature.dtype)
        if spec.shape.rank is None or None in spec.shape[1:]:
            raise TypeError(f"features[{name!r}]: only the first dimension may be None, got {feature!r}")
        if spec.dtype not in _LISTS:
            return tf.io.FixedLenFeature([], tf.string), spec
        kind = tf.io.RaggedFeature(spec.dtype, row_splits_dtype=tf.int64)
        return kind if varies(spec) else tf.io.FixedLenFeature(spec.shape, spec.dtype), spec
    if isinstance(feature, tf.io.FixedLenFeature) and tf.TensorShape(feature.shape).is_fully_defined():
        return feature, tf.TensorSpec(feature.shape, feature.dtype)
    if isinstance(feature, tf.io.RaggedFeature) and not feature.partitions:
        key = feature.value_key or name
        return tf.io.RaggedFeature(feature.dtype, key, row_splits_dtype=tf.int64), tf.TensorSpec([None], feature.dtype)
    if isinstance(feature, tf.io.VarLenFeature):
        return tf.io.RaggedFeature(feature.dtype, row_splits_dtype=tf.int64), tf.TensorSpec([None], feature.dtype)
    if isinstance(feature, tf.io.FixedLenSequenceFeature) and tf.TensorShape(feature.shape).is_fully_defined():
        spec = tf.TensorSpec([None, *tf.TensorShape(feature.shape)], feature.dtype)
        return tf.io.RaggedFeature(feature.dtype, row_splits_dtype=tf.int64), spec
    raise TypeError(
        f"features[{name!r}]: expected a tf.io.FixedLenFeature of a fixed shape, VarLenFeature, RaggedFeature without "
        f"partitions, FixedLenSequenceFeature or tf.TensorSpec, got {feature!r}"
    )


def _from_bytes(name: str, value: tf.Tensor, spec: tf.TensorSpec, names: tf.Tensor) -> Any:
    sizes = tf.strings.length(value)
    row = spec.dtype.size * (spec.shape[1:] if varies(spec) else spec.shape).num_elements()
    wrong = sizes % row != 0 if varies(spec) else sizes != row
    rows_of = "a multiple of " if varies(spec) else ""
    check = _refuse_where(wrong, names, f"feature {name!r} must have {rows_of}{row} bytes to be {_short(spec)}")
    with tf.control_dependencies([check]):
        joined = tf.strings.reduce_join(value)
    flat = tf.io.decode_raw(joined, _SAME_BITS.get(spec.dtype, spec.dtype))
    if spec.dtype in _SAME_BITS:
        flat = tf.bitcast(flat, spec.dtype)
    if not varies(spec):
        return tf.reshape(flat, tf.concat([tf.shape(value), tf.constant(spec.shape.as_list(), tf.int32)], 0))
    values = tf.reshape(flat, [-1, *spec.shape[1:]])
    return tf.RaggedTensor.from_row_lengths(values, tf.cast(sizes // row, tf.int64), validate=False)


def _short(spec: tf.TensorSpec) -> str:
    return f"{spec.dtype.name}{spec.shape}"


def _refuse_where(wrong: tf.Tensor, names: tf.Tensor, reason: str) -> tf.Operation:
    def fail(found: np.ndarray) -> None:
        raise SourceError(f"{found[0].decode()}: {reason}", code="source-record")

    return _if_any(wrong, names, fail)


def _refuse_what_is_no_example(records: tf.Tensor, names: tf.Tensor) -> tf.Operation:
    """tf.io.parse_example does not name such a record, and quotes its bytes instead of a reason.

    An Example is the byte 0x0A, a variable-length integer, and so many bytes; only where that is not so is it parsed in
    Python, to be sure.
    """
    head = tf.strings.substr(tf.strings.join([records, tf.constant(b"\0" * 11)]), 0, 11)
    head = tf.reshape(tf.cast(tf.io.decode_raw(head, tf.uint8, fixed_length=11), tf.int64), [-1, 11])
    digits = head[:, 1:]
    shifts = 7 * tf.range(10, dtype=tf.int64)[tf.newaxis] + tf.zeros_like(digits)
    last = tf.argmax(tf.cast(digits < 128, tf.int32), axis=1)  # the first with its highest bit clear
    used = tf.range(10, dtype=tf.int64)[tf.newaxis] <= last[:, tf.newaxis]
    size = tf.reduce_sum(tf.where(used, tf.bitwise.left_shift(tf.bitwise.bitwise_and(digits, 127), shifts), 0), axis=1)
    length = tf.cast(tf.strings.length(records), tf.int64)
    suspicious = (length > 0) & ((head[:, 0] != 0x0A) | (size != length - 2 - last))

    def check(found: np.ndarray, contents: np.ndarray) -> None:
        for name, content in zip(found, contents, strict=True):
            try:
                tf.train.Example.FromString(content)
            except Exception as error:  # google.protobuf.message.DecodeError
                raise SourceError(f"{name.decode()}: it is no tf.train.Example", code="source-record") from error

    return _if_any(suspicious, names, check, records)


def _if_any(mask: tf.Tensor, names: tf.Tensor, check: Callable[..., None], *more: tf.Tensor) -> tf.Operation:
    def run() -> tf.Operation:
        with tf.control_dependencies(
            [tf.numpy_function(check, [tf.boolean_mask(one, mask) for one in (names, *more)], [])]
        ):
            return tf.no_op()

    return tf.cond(tf.reduce_any(mask), run, tf.no_op)


def serialize(rows: Mapping[str, Any], element_spec: Spec) -> list[bytes]:
    """Rows as ``Source.fetch`` gives them to records, which ``ExampleParser(element_spec)`` parses again."""
    columns = {name: _messages(rows[name], spec) for name, spec in element_spec.items()}
    count = len(next(iter(columns.values())))
    return [
        tf.train.Example(
            features=tf.train.Features(feature={name: column[i] for name, column in columns.items()})
        ).SerializeToString(deterministic=True)
        for i in range(count)
    ]


def _messages(feature: Any, spec: tf.TensorSpec) -> list[tf.train.Feature]:
    values, bounds = _flat(feature, spec)
    parts = [values[begin:end] for begin, end in itertools.pairwise(bounds)]
    if spec.dtype == tf.int64:
        return [tf.train.Feature(int64_list=tf.train.Int64List(value=part)) for part in parts]
    if spec.dtype == tf.float32:
        return [tf.train.Feature(float_list=tf.train.FloatList(value=part)) for part in parts]
    if spec.dtype == tf.string:
        return [tf.train.Feature(bytes_list=tf.train.BytesList(value=part)) for part in parts]
    return [tf.train.Feature(bytes_list=tf.train.BytesList(value=[part.tobytes()])) for part in parts]


def _flat(feature: Any, spec: tf.TensorSpec) -> tuple[np.ndarray, np.ndarray]:
    """All values one after the other, and where those of each row begin and end."""
    if isinstance(feature, tf.RaggedTensor):
        width = math.prod(spec.shape[1:])
        return feature.flat_values.numpy().reshape(-1), feature.row_splits.numpy() * width
    array = feature.numpy()
    return array.reshape(-1), np.arange(len(array) + 1) * math.prod(spec.shape)
