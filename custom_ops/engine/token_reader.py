"""Windows of a token file at any places: like the reader of records an ordinary TensorFlow kernel of the host,
``host/token_reader.cc``, since it names a file by a string.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.engine import tf_host


def read_tokens(
    path: Any,
    checksums: Any,
    starts: Any,
    *,
    header_bytes: int,
    block_bytes: int,
    item_bytes: int,
    tokens: int,
    length: int,
    name: str | None = None,
) -> tf.Tensor:
    """``length`` tokens from each of ``starts`` on. A block of the file is checked when it is first read.

    Works eagerly, in ``tf.function`` and in ``tf.data``; from any number of threads.

    Args:
      path: string, a local file of unsigned little-endian integers.
      checksums: uint32[blocks]; CRC-32 of each block of ``block_bytes`` (the last one may be shorter).
      starts: int64[n], numbers of tokens.
      header_bytes: where the first token lies.
      block_bytes: see ``checksums``.
      item_bytes: 1, 2 or 4, of each token.
      tokens: how many there are.
      length: of a window.

    Returns:
      int32[n, length]; tokens from 2**31 on wrap around.

    Raises:
      tf.errors.NotFoundError: there is no such file; or what else the system says.
      tf.errors.DataLossError: a checksum does not match, or the file has become shorter. Names file and place.
      tf.errors.InvalidArgumentError: a window that isn't in the file, a number or shape that doesn't fit the others.
    """
    return tf_host.plain_ops().tf_toolkit_read_tokens(
        path,
        tf.convert_to_tensor(checksums, tf.uint32),
        tf.convert_to_tensor(starts, tf.int64),
        header_bytes=header_bytes,
        block_bytes=block_bytes,
        item_bytes=item_bytes,
        tokens=tokens,
        length=length,
        name=name,
    )
