"""Token files: a corpus as one memory-mapped array of token ids, with the offsets of its documents.

Layout, all numbers little-endian::

    0      magic b"TFTKTOK1", uint32 length of the JSON text, uint32 CRC-32 of the JSON text, JSON text (ASCII), zeros
    4096   the tokens of all documents, one after the other, as uint8, uint16 or uint32
    …      zeros up to a multiple of 8
    …      int64[documents + 1]: document i holds tokens offsets[i] … offsets[i + 1] - 1
    …      uint32[blocks]: CRC-32 of each block of 64 KiB of the tokens (the last one may be shorter); end of file

The JSON object has "dtype", "tokens", "documents", "vocabulary_size", "tokenizer" (fingerprint of the tokenizer) and
"index_crc32" (CRC-32 of offsets and block checksums). Header and index are checked when a file is opened; a block of
tokens when it is first read, so that opening costs the same for every size, and damage is found before it is passed on.
"""

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tftoolkit.pipelines.errors import SourceError

MAGIC = b"TFTKTOK1"
HEADER_BYTES = 4096
BLOCK_BYTES = 1 << 16
_PREFIX = struct.Struct("<8sII")


class TokenFile:
    """A token file opened for reading; the tokens stay on disk.

    Attributes:
      tokens: np.memmap of all tokens, uint8, uint16 or uint32; reading it directly is not checked, see ``check``.
      offsets: int64[documents + 1].
      vocabulary_size: every token is below.
      tokenizer: fingerprint of the tokenizer that wrote it, see ``Tokenizer.fingerprint``.
      checksums: uint32[blocks], CRC-32 of each block of the tokens.
      checksum: CRC-32 over everything, 8 hexadecimal digits.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises FileNotFoundError, or SourceError if it is no token file or a damaged one, with the reason."""
        self.path = Path(path).expanduser().absolute()
        try:
            with self.path.open("rb") as file:
                header = _read_header(file, self.path)
                self._open(file, header)
        except FileNotFoundError:
            raise FileNotFoundError(f"file: there is no token file {self.path}; text.write_tokens makes one") from None
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error.strerror}") from error

    def _open(self, file: BinaryIO, header: dict[str, Any]) -> None:
        dtype = np.dtype(header["dtype"]).newbyteorder("<")
        token_bytes = header["tokens"] * dtype.itemsize
        blocks = -(-token_bytes // BLOCK_BYTES)
        index_start = HEADER_BYTES + token_bytes + -token_bytes % 8
        index_bytes = 8 * (header["documents"] + 1) + 4 * blocks
        size = os.fstat(file.fileno()).st_size
        if size != index_start + index_bytes:
            raise SourceError(
                f"{self.path} is damaged: it has {size} bytes, but {index_start + index_bytes} according to its header",
                code="source-damaged",
            )
        file.seek(index_start)
        index = file.read(index_bytes)
        if zlib.crc32(index) != header["index_crc32"]:
            raise SourceError(
                f"{self.path} is damaged: the checksum of its document offsets is wrong", code="source-damaged"
            )
        self.offsets = np.frombuffer(index, "<i8", header["documents"] + 1).astype(np.int64)
        self.checksums = np.frombuffer(index, "<u4", blocks, offset=self.offsets.nbytes)
        self._checked = np.zeros(blocks, bool)
        # An empty file cannot be mapped.
        shape = (header["tokens"],)
        mapped = np.memmap(file, dtype, "r", HEADER_BYTES, shape) if header["tokens"] else np.zeros(shape, dtype)
        self.tokens: np.ndarray = mapped
        self.vocabulary_size: int = header["vocabulary_size"]
        self.tokenizer: str = header["tokenizer"]
        self.checksum = f"{header['index_crc32']:08x}"

    def check(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Makes sure that tokens ``starts[i] … stops[i] - 1`` are undamaged; each block is read for this only once.

        Raises:
          SourceError: they are not; names file and place.
        """
        filled = stops > starts
        if not filled.any():
            return
        itemsize = self.tokens.itemsize
        first = starts[filled] * itemsize // BLOCK_BYTES
        last = (stops[filled] * itemsize - 1) // BLOCK_BYTES
        touched = np.minimum(first[:, None] + np.arange((last - first).max() + 1), last[:, None])
        for block in np.unique(touched[~self._checked[touched]]).tolist():
            per_block = BLOCK_BYTES // itemsize
            if zlib.crc32(self.tokens[block * per_block : (block + 1) * per_block].tobytes()) != self.checksums[block]:
                begin = HEADER_BYTES + block * BLOCK_BYTES
                end = min(begin + BLOCK_BYTES, HEADER_BYTES + self.tokens.nbytes)
                raise SourceError(
                    f"{self.path} is damaged between byte {begin} and byte {end}: wrong checksum", code="source-damaged"
                )
            self._checked[block] = True


def write_token_file(
    path: str | os.PathLike[str], documents: Iterable[np.ndarray], vocabulary_size: int, tokenizer: str
) -> TokenFile:
    """Writes documents (1-D integer arrays of token ids) to a token file; it appears complete or not at all.

    Raises:
      ValueError: a token is not in [0, vocabulary_size), or the vocabulary needs more than 32 bits.
      SourceError: the file cannot be written.
    """
    path = Path(path).expanduser().absolute()
    if not 1 <= vocabulary_size <= 1 << 32:
        raise ValueError(f"vocabulary_size={vocabulary_size}: must be at least 1 and fit 32 bits")
    try:
        # A hidden file beside the destination: renaming is atomic within a file system only.
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            written = Path(file.name)
            try:
                _write(file, documents, vocabulary_size, tokenizer)
                file.flush()
                os.fsync(file.fileno())
                written.chmod(0o666 & ~_umask())
                written.replace(path)
            except BaseException:
                written.unlink(missing_ok=True)
                raise
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} cannot be written: {error.strerror or error}", code="source-unwritable") from error
    return TokenFile(path)


def _write(file: Any, documents: Iterable[np.ndarray], vocabulary_size: int, tokenizer: str) -> None:
    dtype = np.min_scalar_type(vocabulary_size - 1).newbyteorder("<")
    lengths: list[int] = []
    checksums: list[int] = []
    file.seek(HEADER_BYTES)
    for block in _blocks(documents, vocabulary_size, dtype, lengths):
        checksums.append(zlib.crc32(block))
        file.write(block)
    token_bytes = sum(lengths) * dtype.itemsize
    index = np.cumsum([0, *lengths], dtype="<i8").tobytes() + np.array(checksums, "<u4").tobytes()
    file.write(bytes(-token_bytes % 8) + index)
    header = {
        "dtype": dtype.name,
        "tokens": sum(lengths),
        "documents": len(lengths),
        "vocabulary_size": vocabulary_size,
        "tokenizer": tokenizer,
        "index_crc32": zlib.crc32(index),
    }
    text = json.dumps(header).encode()
    file.seek(0)
    file.write((_PREFIX.pack(MAGIC, len(text), zlib.crc32(text)) + text).ljust(HEADER_BYTES, b"\0"))


def _blocks(
    documents: Iterable[np.ndarray], vocabulary_size: int, dtype: np.dtype, lengths: list[int]
) -> Iterator[bytes]:
    """The tokens of all documents in blocks of BLOCK_BYTES; adds the length of each document to ``lengths``."""
    waiting = bytearray()
    for number, document in enumerate(documents):
        tokens = np.asarray(document)
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary_size:
            raise ValueError(
                f"documents: number {number} holds the tokens {tokens.min()} to {tokens.max()}; they must be in "
                f"[0, {vocabulary_size})"
            )
        lengths.append(tokens.size)
        waiting += tokens.astype(dtype).tobytes()
        whole = len(waiting) - len(waiting) % BLOCK_BYTES
        for start in range(0, whole, BLOCK_BYTES):
            yield bytes(waiting[start : start + BLOCK_BYTES])
        del waiting[:whole]
    if waiting:
        yield bytes(waiting)


def _read_header(file: BinaryIO, path: Path) -> dict[str, Any]:
    start = file.read(HEADER_BYTES)
    if len(start) < _PREFIX.size or start[:8] != MAGIC:
        raise SourceError(
            f"{path} is no token file: it begins with {start[:8]!r} and not with {MAGIC!r}", code="source-format"
        )
    _, length, checksum = _PREFIX.unpack_from(start)
    text = start[_PREFIX.size : _PREFIX.size + length]
    if len(text) != length or zlib.crc32(text) != checksum:
        raise SourceError(f"{path} is damaged: the checksum of its header is wrong", code="source-damaged")
    header: dict[str, Any] = json.loads(text)
    return header


def _umask() -> int:
    """The process's umask, which temporary files do not follow."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
