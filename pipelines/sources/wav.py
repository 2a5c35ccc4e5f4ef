"""The header of a WAV file (RIFF, RIFX, RF64, BW64): where its sound is, and whether all of it is there.

Programs that write to a pipe do not know how much will come, and leave 0, 0xFFFFFFFF or a number near 2 GiB in the
header: the sound reaches to the end of the file then. The size of the whole file, which some get wrong, counts nothing.
"""

import io
import struct
from typing import Any, NamedTuple

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.sources.files import read_part

_FROM_HERE_ON_UNKNOWN = 0x7FFFF000  # what SoX writes; others 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF
_LARGEST = 0xFFFFFFFF
_ENDIAN = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}


class Size(NamedTuple):
    """What the header should say of the sound's size."""

    at: int
    field: bytes


def missing_size(path: str, size: int) -> Size | None:
    """What to put into the header of a WAV file of ``size`` bytes so that libsndfile reads all of its sound; None if it
    does anyway, or the file is no WAV file. Raises SourceError if it is damaged or not whole."""
    head = read_part(path, 0, min(size, 12))
    if head[:4] not in _ENDIAN or head[8:] != b"WAVE":
        return None
    endian, at = _ENDIAN[head[:4]], 12
    at_64, told_64 = 0, 0
    while at + 8 <= size:
        name, told = struct.unpack(endian + "4sI", read_part(path, at, 8))
        if name == b"ds64" and at + 24 <= size:
            at_64, told_64 = at + 16, struct.unpack(endian + "Q", read_part(path, at + 16, 8))[0]
        if name == b"data":
            if not at_64 or told != _LARGEST:
                at_64, told_64 = 0, told
            held = size - at - 8
            if not _is_unknown(path, at + 8, size, told_64, bool(at_64)):
                return None
            if not at_64 and held > _LARGEST:
                raise SourceError(
                    f"{path}: more than 4 GiB of sound and no size in its header; write it as RF64",
                    code="source-format",
                )
            return Size(at_64 or at + 4, struct.pack(endian + ("Q" if at_64 else "I"), held))
        at += 8 + told + told % 2
    what = f"it has {size} bytes of {at} or more" if at > size else "it has no data"
    raise SourceError(f"{path} is truncated: {what}", code="source-damaged")


def _is_unknown(path: str, begin: int, size: int, told: int, in_64_bits: bool) -> bool:
    held = size - begin
    if told == 0:
        return held > 0 and not _are_chunks(path, begin, size)
    if told <= held:
        return False
    if (_FROM_HERE_ON_UNKNOWN <= told <= _LARGEST and not in_64_bits) or told >= 1 << 63:
        return True
    raise SourceError(f"{path} is truncated: it has {size} bytes of {begin + told}", code="source-damaged")


def _are_chunks(path: str, at: int, size: int) -> bool:
    """Whether other chunks fill the rest of the file, so that the sound is really empty."""
    while at + 8 <= size:
        name, told = struct.unpack("<4sI", read_part(path, at, 8))
        if not name.isascii() or not name.decode("ascii").isprintable():
            return False
        at += 8 + told + told % 2
    return at in (size, size + 1)


class WithSize(io.FileIO):
    """The file, with the size of its sound in the header."""

    def __init__(self, path: str, size: Size) -> None:
        super().__init__(path)
        self._size = size

    def readinto(self, buffer: Any) -> int:
        begin = self.tell()
        count = super().readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        for place, byte in enumerate(self._size.field, self._size.at - begin):
            if 0 <= place < count:
                view[place] = byte
        return count
