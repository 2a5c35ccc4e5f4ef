"""Files that are not what a source of text reads: compressed, of other programs, or in another encoding."""

import codecs

from tftoolkit.pipelines.errors import SourceError

LOOKED_AT = 512  # bytes

_COMPRESSED = "compressed ({}); decompress it first"
_FOREIGN = {
    b"\x1f\x8b": _COMPRESSED.format("gzip"),
    b"BZh91AY&SY": _COMPRESSED.format("bzip2"),
    b"\xfd7zXZ\0": _COMPRESSED.format("xz"),
    b"\x28\xb5\x2f\xfd": _COMPRESSED.format("zstd"),
    b"\x04\x22\x4d\x18": _COMPRESSED.format("LZ4"),
    b"7z\xbc\xaf": _COMPRESSED.format("7-Zip"),
    b"PK\3\4": "compressed (ZIP), or an Excel workbook; unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as CSV",
    b"PAR1\x15": "a Parquet file; read it with sources.parquet",
}


def refuse_foreign(path: str, head: bytes, utf_8_or: str | None) -> None:
    """Says what a file is that is no text.

    Args:
      head: its first bytes.
      utf_8_or: what else can be done, with a place for the encoding's name, where the file is not in UTF-8, as it
        should be; "": nothing; None: it may be in any encoding.

    Raises:
      SourceError: it is compressed, a file of another program, or in another encoding.
    """
    kind = next((kind for begin, kind in _FOREIGN.items() if head.startswith(begin)), None)
    if kind is not None:
        raise SourceError(f"{path}: it is {kind}", code="source-format")
    if utf_8_or is None:
        return
    way_out = f"convert it to UTF-8, or {utf_8_or}" if utf_8_or else "convert it to UTF-8"
    marks = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}  # before those that they begin with
    marks |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
    name = next((name for mark, name in marks.items() if head.startswith(mark)), None)
    if name is not None:
        raise SourceError(f"{path}: it is {name}; {way_out.format(name.lower())}", code="source-format")
    if head.count(0) * 4 > len(head):
        little = head[1::2].count(0) > head[::2].count(0)
        name = "utf-16-le" if little else "utf-16-be"
        raise SourceError(
            f"{path}: it has many NUL bytes, so it is UTF-16, or no text; {way_out.format(name)}", code="source-format"
        )
