"""From the bytes of a CSV file to its records: dialects, encodings, comments."""

import codecs
import csv as _csv
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.sources.foreign import LOOKED_AT, refuse_foreign

_AT_ONCE = 4096  # lines
_LONGEST = 1 << 30  # characters of a value
_UTF8 = "utf-8"


class Dialect(NamedTuple):
    """How values are written; see ``csv``."""

    delimiter: str
    encoding: str = _UTF8
    quote: str | None = '"'
    comment: str | None = None
    skip_initial_space: bool = False

    @classmethod
    def checked(
        cls, delimiter: str, encoding: str, quote: str | None, comment: str | None, skip_initial_space: bool
    ) -> "Dialect":
        if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
            raise ValueError(f"delimiter={delimiter!r}: expected one character that is no quote and no line break")
        if quote is not None and (not isinstance(quote, str) or len(quote) != 1 or quote in f"{delimiter}\r\n "):
            raise ValueError(f"quote={quote!r}: expected None or one character that is no space and not the delimiter")
        if comment is not None and (not isinstance(comment, str) or not comment or comment[0] in f"{quote or ''}\r\n"):
            raise ValueError(f"comment={comment!r}: expected None or what lines begin with, and that is no quote")
        try:
            name = codecs.lookup(encoding).name
        except (LookupError, TypeError) as error:
            raise ValueError(f"encoding={encoding!r}: Python knows no such encoding") from error
        return cls(delimiter, name, quote, comment, bool(skip_initial_space))

    def identity(self) -> dict[str, Any]:
        """For fingerprints: the delimiter, and what is not as usual."""
        usual = Dialect(self.delimiter)
        changed = {name: value for name, value in self._asdict().items() if value != getattr(usual, name)}
        return {"delimiter": self.delimiter, **changed}


def records(path: str, dialect: Dialect, bar: Any) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, values) of each record. What is no UTF-8 becomes surrogates, refused later by row."""
    _csv.field_size_limit(_LONGEST)
    utf8 = dialect.encoding == _UTF8
    with tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb") as binary:
        refuse_foreign(path, binary.read(LOOKED_AT), "give encoding={!r}" if utf8 else None)
        binary.seek(0)
        stream = io.TextIOWrapper(
            binary,
            "utf-8-sig" if utf8 else dialect.encoding,
            errors="surrogateescape" if utf8 else "strict",
            newline="",
        )
        lines = _Lines(stream, dialect.comment)
        reader = _csv.reader(
            lines,
            delimiter=dialect.delimiter,
            quotechar=dialect.quote,
            quoting=_csv.QUOTE_NONE if dialect.quote is None else _csv.QUOTE_MINIMAL,
            skipinitialspace=dialect.skip_initial_space,
            strict=True,
        )
        done = 0
        while True:
            lines.between_rows = True
            try:
                values = next(reader)
            except StopIteration:
                return
            except _csv.Error as error:
                raise SourceError(
                    f"{path}, line {lines.begin}: {error}; the row that begins there has a quote too many or too few, "
                    "so that the rows behind it cannot be told apart",
                    code="source-format",
                ) from error
            except UnicodeError as error:
                raise SourceError(
                    f"{path}, behind line {lines.number}: it is no {dialect.encoding}: {error}", code="source-format"
                ) from error
            yield lines.begin, values
            if lines.number % _AT_ONCE == 0:
                done, before = binary.tell(), done
                bar.update(done - before)


class _Lines:
    """The lines of a file, without comments between rows.

    Attributes:
      number: of the last line that was read, counted from 1.
      begin: number of the line on which the row begins.
      between_rows: whether the next line is the first of a row.
    """

    def __init__(self, stream: io.TextIOWrapper, comment: str | None) -> None:
        self._stream, self._comment = stream, comment
        self.number, self.begin, self.between_rows = 0, 1, True

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self.number += 1
        if self.between_rows:
            while self._comment is not None and line.startswith(self._comment):
                line = next(self._stream)
                self.number += 1
            self.begin, self.between_rows = self.number, False
        return line
