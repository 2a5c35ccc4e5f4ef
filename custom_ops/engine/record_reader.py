"""Random access to TFRecord files (https://www.tensorflow.org/tutorials/load_data/tfrecord): the first op that handles
strings. No XLA FFI handler can, so it is an ordinary TensorFlow kernel of the host, ``host/record_reader.cc``.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.engine import tf_host

FRAME_BYTES = 16  # what a TFRecord file holds beside each record: its length, and two checksums


def read_records(path: Any, offsets: Any, lengths: Any, numbers: Any = None, *, name: str | None = None) -> tf.Tensor:
    """Reads records of TFRecord files, in any order, and checks both checksums (CRC-32C) of each.

    Works eagerly, in ``tf.function`` and in ``tf.data``; from any number of threads. Compressed files cannot be read.

    Args:
      path: string; one file for all records, or [n], a file for each.
      offsets: int64[n]; where in its file each record begins, with its length field.
      lengths: int64[n]; bytes of data in each record.
      numbers: int64[n]; what error messages call the records. Default: 0, 1, …

    Returns:
      string[n], the data.

    Raises:
      tf.errors.NotFoundError: there is no such file; or what else the file system says (PermissionDeniedError, …).
      tf.errors.OutOfRangeError: a record would end behind the end of its file.
      tf.errors.DataLossError: a checksum does not match: the record is damaged, or none begins at this offset.
      tf.errors.InvalidArgumentError: negative offset or length, a record of another length, shapes that do not agree.
      BuildError, LoadError: the op host cannot be built, or not be loaded.

    Those about a record name the file, its number and its offset. Under ``jit_compile=True``: InvalidArgumentError,
    since XLA knows no strings.
    """
    offsets = tf.convert_to_tensor(offsets, tf.int64)
    if numbers is None:
        numbers = tf.range(tf.size(offsets, tf.int64))
    return tf_host.plain_ops().tf_toolkit_read_records(path, offsets, lengths, numbers, name=name)


def index_records(
    path: Any, offset: Any = 0, number: Any = 0, limit: Any = tf.int64.max, *, name: str | None = None
) -> tf.Tensor:
    """The lengths of the records of a TFRecord file, from their headers; what lies between is not read.

    Record i begins at the sum of ``lengths[:i] + FRAME_BYTES``.

    Args:
      path: string, an uncompressed file.
      offset: int64, where a record begins, or the file's end; from there on.
      number: int64, what error messages call the record at ``offset``.
      limit: int64, how many records at most: for those who do a long file in parts, to show how far they are.

    Returns:
      int64[n], bytes of data in each record.

    Raises:
      tf.errors.NotFoundError: there is no such file.
      tf.errors.DataLossError: a length field is damaged, or the file ends inside a record: all that follows is lost.
        Names the file, the record and its offset.
      tf.errors.InvalidArgumentError: a negative number.
      BuildError, LoadError: as of ``read_records``.
    """
    return tf_host.plain_ops().tf_toolkit_index_records(path, offset, number, limit, name=name)
