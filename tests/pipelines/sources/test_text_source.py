"""The text source against Python's own way to split text."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tftoolkit.pipelines import Pipeline, SourceError, sources
from tftoolkit.pipelines.sources import text_source

PIECES = st.sampled_from(["a", "wörter", "\n", "\n\n", "\r\n", " ", "\t", "\r", "x y", "\u2028", "\ufeff", "\v"])
FILES = st.lists(st.lists(PIECES, max_size=30).map("".join), min_size=1, max_size=3)


def everything(source: Any) -> list[bytes]:
    return source.fetch(tf.range(len(source), dtype=tf.int64))["text"].numpy().tolist()


def write(folder: Path, contents: list[str]) -> list[Path]:
    files = [folder / f"{number}.txt" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content.encode())
    return files


def lines(content: str) -> list[str]:
    found = content.removeprefix("\ufeff").split("\n")
    found = found[:-1] if found[-1] == "" else found
    ended = content.endswith("\n")
    return [line.removesuffix("\r") if ended or i < len(found) - 1 else line for i, line in enumerate(found)]


def paragraphs(content: str) -> list[str]:
    """What lies between lines of nothing but ASCII white space."""
    found, current = [], ""
    for line in [*re.findall(r"[^\n]*\n|[^\n]+", content.removeprefix("\ufeff")), "\n"]:
        if line.strip(" \t\r\n\v\f"):
            current += line
        elif current:
            found.append(current.rstrip(" \t\r\n\v\f"))
            current = ""
    return found


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=FILES, block=st.integers(1, 40))
def test_lines_and_paragraphs_are_those_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: list[str], block: int
) -> None:
    """Blocks of a few bytes, so that lines and characters cross their borders."""
    monkeypatch.setattr(text_source, "_BLOCK", block)
    files = write(tmp_path, contents)
    for by, split in (("line", lines), ("paragraph", paragraphs)):
        expected = [part.encode() for content in contents for part in split(content)]
        if expected:
            assert everything(sources.text(files, by)) == expected
        else:
            with pytest.raises(ValueError, match=f"there is no {by} in"):
                sources.text(files, by)
    assert everything(sources.text(files, "file")) == [content.removeprefix("\ufeff").encode() for content in contents]


def test_a_shuffled_pipeline_resumes_and_examples_are_described(tmp_path: Path) -> None:
    files = write(tmp_path, ["a\n\nb\nc\n", "d\n\n\ne"])
    p = Pipeline(sources.text(files), seed=1).shuffle().batch(3)
    whole = [batch["text"].numpy().tolist() for batch in p.dataset(epochs=2)]
    assert sorted(itertools.chain(*whole[:3])) == [b"", b"", b"", b"a", b"b", b"c", b"d", b"e"]
    assert [batch["text"].numpy().tolist() for batch in p.dataset(2, epochs=2)] == whole[2:]
    source = sources.text(files, "paragraph")
    assert [source.describe(i) for i in range(4)] == [
        f"{files[0]}, line 1", f"{files[0]}, line 3", f"{files[1]}, line 1", f"{files[1]}, line 4"
    ]  # fmt: skip
    assert everything(source) == [b"a", b"b\nc", b"d", b"e"]


def test_what_is_no_utf8_costs_one_example_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("gut\nüber\nauch gut\n".encode("latin-1"))
    p = Pipeline(sources.text(file)).batch(3)
    with pytest.raises(SourceError, match=rf"^{file}, line 2: byte 0xfc at offset 4 is no UTF-8"):
        next(iter(p))
    p = Pipeline(sources.text(file), on_error="skip", max_skipped=0.5).batch(3)
    assert next(iter(p))["text"].numpy().tolist() == [b"gut", b"auch gut"]
    whole = sources.text(file, "file")
    with pytest.raises(SourceError, match=f"{file}, line 2: "):
        whole.fetch(tf.constant([0], tf.int64))


def test_a_file_that_changes_gives_no_wrong_example(tmp_path: Path) -> None:
    [file] = write(tmp_path, ["first\nsecond\n"])
    source = sources.text(file)
    assert everything(source) == [b"first", b"second"]
    file.write_text("x\n")
    with pytest.raises(SourceError, match=f"{file} "):
        everything(source)
    file.unlink()
    with pytest.raises(SourceError, match=f"{file} cannot be read: No such file"):
        everything(source)


def test_memory_holds_places_and_not_text(tmp_path: Path) -> None:
    file = tmp_path / "large.txt"
    file.write_bytes(b"".join(b"%d " % i + b"x" * 500 + b"\n" for i in range(20_000)))
    source = sources.text(file)
    assert source._spans.nbytes == 24 * 20_000
    picked = np.random.default_rng(0).integers(0, 20_000, 100)
    rows = source.fetch(tf.constant(picked))["text"].numpy()
    assert [int(row.split()[0]) for row in rows] == picked.tolist()


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    [file] = write(tmp_path, [""])
    with pytest.raises(ValueError, match="there is no line in"):
        sources.text(file)
    with pytest.raises(ValueError, match="by='word': expected 'line', 'paragraph' or 'file'"):
        sources.text(file, "word")
