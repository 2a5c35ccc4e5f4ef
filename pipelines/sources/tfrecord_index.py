"""Where the records of a TFRecord file lie: made once, kept in a side-car, checked against size and time of change."""

import contextlib
import hashlib
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
import tqdm

from tftoolkit.custom_ops.engine import builder
from tftoolkit.custom_ops.engine.errors import BuildError
from tftoolkit.custom_ops.engine.record_reader import FRAME_BYTES, index_records
from tftoolkit.pipelines.errors import SourceError, message_of, source_error
from tftoolkit.pipelines.progress import progress
from tftoolkit.pipelines.sources import files as _files

_GZIP = b"\x1f\x8b"
_HEADER = 12
_AT_ONCE = 4096  # records between two looks at the progress bar; a disk that must seek takes half a minute for them


def lengths_of(paths: list[str]) -> list[np.ndarray]:
    """For each file the lengths of its records, int64[n], from its side-car or, with progress, from the file itself.

    A record whose length field is damaged counts as one record, up to where the next one begins.

    Raises:
      SourceError: no way past a damaged place is found, or the file ends inside a record.
    """
    sizes = [_files.size_of(path) for path in paths]
    lengths = []
    with progress("indexing TFRecord files", sum(sizes), "B") as bar:
        for path, end in zip(paths, np.cumsum(sizes).tolist(), strict=True):
            lengths.append(_lengths(path, bar))
            bar.update(end - bar.n)  # what was not read to know it
    return lengths


def write_beside(path: str, lengths: np.ndarray) -> None:
    """Writes the side-car of a file whose record lengths are known; where it cannot be written, in the cache."""
    stamp = _stamp(path)
    for place in _places(path):
        if _write_index(place, stamp, lengths):
            break


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths + FRAME_BYTES) - (lengths + FRAME_BYTES)


def _lengths(path: str, bar: tqdm.tqdm) -> np.ndarray:
    stamp = _stamp(path)
    for place in _places(path):
        lengths = _read_index(place, stamp)
        if lengths is not None:
            return lengths
    try:
        lengths = _lengths_by_parts(path, bar)
    except tf.errors.OpError as error:
        lengths = _lengths_of_damaged(path) if isinstance(error, tf.errors.DataLossError) else None
        if lengths is None:
            hint = ". It is compressed: unpack it, compressed files cannot be read in any order"
            told = source_error(error)
            text = f"{told.plain if told else message_of(error)}{hint if _is_gzip(path) else ''}"
            raise SourceError(text, code="source-damaged") from None
    write_beside(path, lengths)
    return lengths


def _lengths_by_parts(path: str, bar: tqdm.tqdm) -> np.ndarray:
    parts: list[np.ndarray] = []
    offset = number = 0
    while not parts or len(parts[-1]) == _AT_ONCE:
        part = index_records(path, offset, number, _AT_ONCE).numpy()
        parts.append(part)
        size = int((part + FRAME_BYTES).sum())
        offset, number = offset + size, number + len(part)
        bar.update(size)
    return np.concatenate(parts)


def _stamp(path: str) -> np.ndarray:
    if _files.is_remote(path):
        info = tf.io.gfile.stat(path)
        return np.array([info.length, info.mtime_nsec], np.int64)
    info = os.stat(path)
    return np.array([info.st_size, info.st_mtime_ns], np.int64)


def _places(path: str) -> Iterator[Path]:
    if not _files.is_remote(path):
        yield Path(path + _files.INDEX_SUFFIX)
    with contextlib.suppress(BuildError):  # then there is no second place
        key = hashlib.sha256(path.encode()).hexdigest()[:20]
        yield builder.cache_folder() / "tfrecord" / f"{key}{_files.INDEX_SUFFIX}"


def _read_index(place: Path, stamp: np.ndarray) -> np.ndarray | None:
    try:
        with zipfile.ZipFile(place) as stored:
            if not np.array_equal(_stored(stored, "stamp"), stamp):
                return None
            lengths = _stored(stored, "lengths")
        return lengths if int((lengths + FRAME_BYTES).sum()) == stamp[0] else None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile):
        return None  # missing, or damaged


def _stored(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A vector of int64 in a file of np.savez, three times as fast as np.load: there may be thousands of files."""
    content = archive.read(f"{name}.npy")
    begin = 10 + int.from_bytes(content[8:10], "little")  # version 1.0 of the format
    if b"'<i8'" not in content[:begin]:
        raise ValueError(f"{name} is no int64")
    return np.frombuffer(content, np.int64, offset=begin)


def _write_index(place: Path, stamp: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether it could be written. Two processes may write at once, so it appears by a rename."""
    try:
        place.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as folder:
            written = Path(folder) / place.name
            np.savez(written, stamp=stamp, lengths=lengths)
            written.replace(place)
    except OSError:
        return False
    return True


def _is_gzip(path: str) -> bool:
    return _files.read_part(path, 0, min(2, _files.size_of(path))) == _GZIP


# A damaged length field hides where the next record begins. Its checksum brings the length back if one byte is wrong;
# after more damage the next field with a right checksum is sought.


def _lengths_of_damaged(path: str) -> np.ndarray | None:
    """None if the records behind a damaged place cannot be found."""
    size = _files.size_of(path)
    lengths: list[int] = []
    offset = 0
    while offset < size:
        length = _sound_length(path, offset, size)
        if length is None:
            found = _end_of_damaged(path, offset, size)
            if found is None:
                return None
            length = found - offset - FRAME_BYTES
        lengths.append(length)
        offset += length + FRAME_BYTES
    return np.array(lengths, np.int64)


def _sound_length(path: str, offset: int, size: int) -> int | None:
    """The length of the record at ``offset`` if its field is undamaged and the record lies inside the file."""
    if offset + FRAME_BYTES > size:
        return None
    header = _files.read_part(path, offset, _HEADER)
    length, checksum = struct.unpack("<QI", header)
    if offset + FRAME_BYTES + length > size or _masked_crc(header[:8]) != checksum:
        return None
    return int(length)


def _end_of_damaged(path: str, offset: int, size: int) -> int | None:
    """Where the record ends that begins at ``offset`` with a damaged length field."""
    if offset + FRAME_BYTES > size:
        return None
    end = _end_by_checksum(path, offset, size)
    return _resynchronize(path, offset + FRAME_BYTES, size) if end is None else end


def _end_by_checksum(path: str, offset: int, size: int, in_a_row: int = 8) -> int | None:
    """As above if at most one byte of length and checksum is wrong, also in some of the records that follow."""
    if offset + FRAME_BYTES > size or not in_a_row:
        return None
    header = _files.read_part(path, offset, _HEADER)
    checksum = struct.unpack("<I", header[8:])[0]
    changed = np.frombuffer(header[:8], np.uint8) + np.zeros([8, 256, 8], np.uint8)
    changed[np.arange(8), :, np.arange(8)] = np.arange(256)
    candidates = changed.reshape(-1, 8)
    right = candidates[_masked_crcs(candidates.T) == checksum]
    for candidate in right:
        end = offset + FRAME_BYTES + struct.unpack("<Q", candidate.tobytes())[0]
        if end <= size:
            return int(end)
    # The checksum may be what is damaged; then another record follows, or the file's end.
    end = offset + FRAME_BYTES + struct.unpack("<Q", header[:8])[0]
    if end == size or (end < size and _sound_length(path, end, size) is not None):
        return int(end)
    return int(end) if end < size and _end_by_checksum(path, end, size, in_a_row - 1) is not None else None


def _resynchronize(path: str, start: int, size: int) -> int | None:
    """The first place from ``start`` on where records follow one another up to the file's end.

    All of them, since a record may itself hold the bytes of a TFRecord file.
    """
    block = 1 << 20
    for begin in range(start, size - FRAME_BYTES + 1, block):
        content = np.frombuffer(_files.read_part(path, begin, min(block + _HEADER - 1, size - begin)), np.uint8)
        places = len(content) - _HEADER + 1
        stored = sum(content[8 + i : 8 + i + places].astype(np.uint32) << np.uint32(8 * i) for i in range(4))
        computed = _masked_crcs(np.stack([content[i : i + places] for i in range(8)]))
        for place in np.flatnonzero(stored == computed):
            offset = begin + int(place)
            while offset < size:
                length = _sound_length(path, offset, size)
                if length is None:
                    break
                offset += length + FRAME_BYTES
            else:
                return begin + int(place)
    return None


def _crc_table() -> np.ndarray:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4), one entry per byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


_TABLE = _crc_table()


def _masked_crcs(content: np.ndarray) -> np.ndarray:
    """Masked checksums, uint32[n], of uint8[bytes, n]."""
    crc = np.full(content.shape[1], 0xFFFFFFFF, np.uint32)
    for byte in content:
        crc = _TABLE[(crc ^ byte) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
    crc = ~crc
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


def _masked_crc(content: bytes) -> int:
    return int(_masked_crcs(np.frombuffer(content, np.uint8)[:, np.newaxis])[0])
