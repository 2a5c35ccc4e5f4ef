"""What a pipeline needs from a source of examples, and what sources that read in Python share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.permutation import MAX_SIZE

Example = dict[str, tf.Tensor]
Spec = dict[str, tf.TensorSpec]


class Source(Protocol):
    """Examples that can be read in any order. An example is a flat dict of tensors.

    The first dimension of a feature may vary (None in its spec), no other may. A source may also say itself which
    example stands where: see ``order`` in ``mix_source``.
    """

    @property
    def element_spec(self) -> Spec:
        """Shape and dtype of each feature of one example."""

    def __len__(self) -> int:
        """Number of examples."""

    def fetch(self, indices: tf.Tensor) -> Example:
        """Reads many examples at once: indices int64[n] -> dict of tensors with a leading dimension n.

        A feature whose first dimension varies comes as tf.RaggedTensor of ragged_rank 1. Runs inside the graph of a
        data set, in several threads at the same time; n may be 0.

        Raises:
          SourceError, or an OpError that ``source_error`` turns into one: an example cannot be read.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the contents, as a small JSON-able dict; a saved state is refused where it differs."""

    def describe(self, index: int) -> str:
        """Where example ``index`` lies, for messages: ``"train.csv, line 19"``."""


def checked_source(source: Source) -> Source:
    """``source``, if a pipeline can start with it. Raises TypeError or ValueError."""
    if not (hasattr(source, "fetch") and hasattr(source, "element_spec") and hasattr(source, "__len__")):
        raise TypeError(f"source: expected one of pipelines.sources, e.g. sources.arrays(…), got {source!r}")
    if not 1 <= len(source) <= MAX_SIZE:
        raise ValueError(f"source: it has {len(source)} examples; a pipeline needs at least one")
    return source


def varies(spec: tf.TensorSpec) -> bool:
    """Whether the first dimension of a feature differs from example to example."""
    return bool(spec.shape.rank) and spec.shape[0] is None


def bytes_per_row(columns: Iterable[Any]) -> int:
    """Of dense, eager tensors with a row per example; of strings the mean."""

    def size(column: tf.Tensor) -> int:
        each = 0 if column.dtype != tf.string else tf.reduce_sum(tf.cast(tf.strings.length(column), tf.int64))
        return column.dtype.size * column.shape.num_elements() + int(each)

    with tf.init_scope():  # where a graph is traced just now, numbers are still wanted
        return max(1, sum(-(-size(column) // column.shape[0]) for column in columns))


def fetch_in_python(
    read: Callable[[np.ndarray], Sequence[Sequence[Any] | np.ndarray]], indices: tf.Tensor, element_spec: Spec
) -> Example:
    """Calls ``read(indices)`` from a graph; it returns for each feature, in the order of the spec, a value per row.

    ``read`` raises SourceError for what cannot be read. A value of a wrong shape is a bug of the source and raises
    ValueError.
    """

    @tf.autograph.experimental.do_not_convert
    def read_flat(rows: np.ndarray) -> list[np.ndarray]:
        flat: list[np.ndarray] = []
        for spec, values in zip(element_spec.values(), read(rows), strict=True):
            flat += _stacked(values, spec)
        return flat

    dtypes: list[tf.DType] = []
    for spec in element_spec.values():
        dtypes += [spec.dtype, tf.int64] if varies(spec) else [spec.dtype]
    columns = iter(tf.nest.flatten(tf.numpy_function(read_flat, [indices], dtypes, stateful=False)))
    rows: Example = {}
    for name, spec in element_spec.items():
        if varies(spec):
            values = tf.ensure_shape(next(columns), [None, *spec.shape[1:]])
            lengths = tf.ensure_shape(next(columns), indices.shape)
            rows[name] = tf.RaggedTensor.from_row_lengths(values, lengths, validate=False)
        else:
            rows[name] = tf.ensure_shape(next(columns), indices.shape[:1] + spec.shape)
    return rows


def _stacked(values: Sequence[Any] | np.ndarray, spec: tf.TensorSpec) -> list[np.ndarray]:
    """One array with a row per value; if their length varies, their joined rows and the lengths."""
    dtype = object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
    if not varies(spec):
        return [np.asarray(values, dtype).reshape([len(values), *spec.shape])]
    arrays = [np.asarray(value, dtype).reshape([len(value), *spec.shape[1:]]) for value in values]
    empty = np.empty([0, *spec.shape[1:]], dtype)
    return [np.concatenate([empty, *arrays]), np.array([len(array) for array in arrays], np.int64)]


def raise_where(failed: tf.Tensor, indices: tf.Tensor, message: Callable[[int], str]) -> tf.Operation:
    """Raises SourceError, from a graph, with the message for the first of ``indices`` where ``failed``, bool[n]."""

    def fail(rows: np.ndarray) -> None:
        raise SourceError(message(int(rows[0])), code="source-record")

    def fail_in_graph() -> tf.Operation:
        rows = tf.boolean_mask(indices, failed)
        with tf.control_dependencies([tf.numpy_function(fail, [rows], [])]):
            return tf.no_op()

    return tf.cond(tf.reduce_any(failed), fail_in_graph, tf.no_op)
