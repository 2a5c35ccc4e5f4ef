"""CSV as other programs write it: types that lose no digits, dialects, encodings, and files that are no CSV."""

import bz2
import csv
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, sources
from tftoolkit.pipelines.sources import csv_source

pyarrow_csv = pytest.importorskip("pyarrow.csv")


def write(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def everything(source: Any) -> dict[str, list[Any]]:
    rows = source.fetch(tf.range(len(source), dtype=tf.int64))
    return {name: value.numpy().tolist() for name, value in rows.items()}


def dtype_of(folder: Path, values: list[str], **options: Any) -> str:
    source = sources.csv(write(folder, "x,y\n" + "".join(f"{value},1\n" for value in values)), **options)
    return source.element_spec["x"].dtype.name


def test_t5_no_digits_are_lost(tmp_path: Path) -> None:
    source = sources.csv(write(tmp_path, "id,t\n16777217,1700000000.25\n,1700000000.50\n"))
    assert {name: spec.dtype for name, spec in source.element_spec.items()} == {"id": tf.float64, "t": tf.float64}
    rows = everything(source)
    assert rows["id"][0] == 16777217
    assert np.isnan(rows["id"][1])
    assert rows["t"] == [1700000000.25, 1700000000.5]


FLOATS = [
    (["0.5", "0.25"], "float32"),
    (["0.1", "0.2", "0.1", "nan"], "float32"),  # no value of float32, but told apart
    (["0.1", "0.10000000001"], "float64"),
    (["1e39", "1"], "float64"),
    (["1e-50", "0"], "float64"),
    (["1e-50", "1e39", "inf"], "float64"),
    (["-0.0", "0.0"], "float32"),
    (["16777216", ""], "float32"),
    (["16777217", ""], "float64"),
    (["9007199254740992", ""], "float32"),  # a power of two
    (["16777217", "16777216"], "int64"),
    (["16777217.0", "1"], "float64"),
    (["1e20", "3e25"], "float32"),
    (["True", "false"], "bool"),
    (["TRUE", ""], "string"),
    (["True", "0"], "string"),
    (["1", "0"], "int64"),
    (["yes", "no"], "string"),
]


@pytest.mark.parametrize(("values", "dtype"), FLOATS)
def test_t5_types_that_hold_all_values(tmp_path: Path, values: list[str], dtype: str) -> None:
    assert dtype_of(tmp_path, values) == dtype


def test_t5_types_follow_from_all_rows_and_from_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "_INFERRED_FROM", 2)
    assert dtype_of(tmp_path, ["1", "", "3", "16777217", "16777216"]) == "float64"
    assert dtype_of(tmp_path, ["1.5", "2", "1700000000.25", "1700000000.5"]) == "float64"
    gaps = write(tmp_path, "i,b\n9007199254740993,True\n,\n3,False\n")
    source = sources.csv(gaps, defaults={"i": -1, "b": False})
    assert everything(source) == {"i": [9007199254740993, -1, 3], "b": [True, False, False]}
    assert dtype_of(tmp_path, ["1", ""], defaults={"x": 0.5}) == "float32"


def test_t5_integers_that_no_float_holds_are_named(tmp_path: Path) -> None:
    source = sources.csv(write(tmp_path, 'i\n9007199254740993\n""\n3\n'))
    message = r"line 2, column 'i': '9007199254740993' has more digits than float64.*types={'i': .* defaults={'i'"
    with pytest.raises(SourceError, match=message):
        source.fetch(tf.constant([0], tf.int64))
    with pytest.raises(SourceError, match=r"'1e400' is too large for float64"):
        sources.csv(write(tmp_path, "x\n1e400\n0.5\n")).fetch(tf.constant([0], tf.int64))
    with pytest.raises(SourceError, match=r"'18446744073709551616' does not fit into int64 .*types={'i'"):
        sources.csv(write(tmp_path, "i\n1\n18446744073709551616\n")).fetch(tf.constant([1], tf.int64))


def test_t5_bools_in_a_pipeline(tmp_path: Path) -> None:
    p = Pipeline(sources.csv(write(tmp_path, "b\nTrue\nFALSE\n"))).batch(2)
    assert next(iter(p))["b"].numpy().tolist() == [True, False]


def test_t5_uci_files_with_spaces_comments_and_question_marks(tmp_path: Path) -> None:
    text = '# adult\nage, job, hours\n39, State-gov, 40\n# a remark\n50, ?, 13\n38, "a, b", 40\n'
    file = write(tmp_path, text)
    source = sources.csv(file, skip_initial_space=True, comment="#", missing=["?"])
    assert everything(source) == {"age": [39, 50, 38], "job": [b"State-gov", b"", b"a, b"], "hours": [40, 13, 40]}
    assert source.describe(1) == f"{file}, line 5"
    kept = sources.csv(write(tmp_path, 's\n"# no\ncomment"\n"two\n# lines"\n#x\n'), comment="#")
    assert everything(kept)["s"] == [b"# no\ncomment", b"two\n# lines"]


DIALECTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"delimiter": ","}, {}),
    ({"delimiter": ";", "quoting": csv.QUOTE_ALL}, {"delimiter": ";"}),
    ({"delimiter": "\t", "lineterminator": "\n"}, {"delimiter": "\t"}),
    ({"delimiter": "|", "lineterminator": "\r", "quoting": csv.QUOTE_ALL}, {"delimiter": "|"}),
    ({"quotechar": "'", "quoting": csv.QUOTE_NONNUMERIC}, {"quote": "'"}),
    ({"quoting": csv.QUOTE_ALL, "quotechar": "$"}, {"quote": "$"}),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_t5_every_dialect_and_encoding(tmp_path: Path, encoding: str) -> None:
    for writer, reader in DIALECTS:
        check_dialect(tmp_path, writer, reader, encoding)


def check_dialect(tmp_path: Path, writer: dict[str, Any], reader: dict[str, Any], encoding: str) -> None:
    rows = [["text", "n"], ['ü, "x"', 1], ["it's; a|b", -2], ["two\nlines\t$", 3]]
    stream = io.StringIO(newline="")
    csv.writer(stream, **writer).writerows(rows)
    file = write(tmp_path, stream.getvalue().encode(encoding))
    given = {} if encoding.startswith("utf-8") else {"encoding": encoding}
    expected = {"text": [str(row[0]).encode() for row in rows[1:]], "n": [1, -2, 3]}
    assert everything(sources.csv(file, **reader, **given)) == expected


def test_t5_without_quotes(tmp_path: Path) -> None:
    file = write(tmp_path, 's\tn\nsay "hi\t1\n5" disk\t2\n')
    found = everything(sources.csv(file, delimiter="\t", quote=None))
    assert found == {"s": [b'say "hi', b'5" disk'], "n": [1, 2]}


def test_t5_as_pyarrow_reads(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    columns = {
        "i": [str(value) for value in generator.integers(-(2**62), 2**62, 50)],
        "f": [repr(value) for value in generator.normal(size=50) * 10.0 ** generator.integers(-30, 30, 50)],
        "t": [f"{1.7e9 + i / 8:.3f}" for i in range(50)],
        "b": [["true", "false"][value] for value in generator.integers(0, 2, 50)],
        "gap": [["", "7", "123456789"][value] for value in generator.integers(0, 3, 50)],
        "s": [f"v{value}" for value in generator.integers(0, 9, 50)],
    }
    text = "\n".join([",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))])
    file = write(tmp_path, text)
    source, truth = sources.csv(file), pyarrow_csv.read_csv(file)
    for name, found in everything(source).items():
        expected = truth.column(name).to_pylist()
        if source.element_spec[name].dtype.is_floating:
            exact = np.array([np.nan if value is None else value for value in expected])
            np.testing.assert_array_equal(np.array(found), exact.astype(source.element_spec[name].dtype.as_numpy_dtype))
        else:
            assert found == [value.encode() if isinstance(value, str) else value for value in expected]


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("t.csv", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (gzip.compress, r"t.csv: it is compressed \(gzip\); decompress it first"),
        (bz2.compress, r"t.csv: it is compressed \(bzip2\)"),
        (lzma.compress, r"t.csv: it is compressed \(xz\)"),
        (zipped, r"t.csv: it is compressed \(ZIP\), or an Excel workbook"),
        (lambda content: content.decode().encode("utf-16"), r"t.csv: it is UTF-16; .*give encoding='utf-16'"),
        (lambda content: b"\xfe\xff" + content.decode().encode("utf-16-be"), r"t.csv: it is UTF-16; .*'utf-16'"),
        (lambda content: content.decode().encode("utf-32"), r"t.csv: it is UTF-32; .*give encoding='utf-32'"),
        (lambda content: content.decode().encode("utf-16-le"), r"many NUL bytes, .*give encoding='utf-16-le'"),
        (lambda content: content.decode().encode("utf-16-be"), r"many NUL bytes, .*give encoding='utf-16-be'"),
        (
            lambda content: "größe,n\n1,2\n".encode("latin-1"),
            r"t.csv: its header is no UTF-8: .*encoding=…, such as 'latin",
        ),
    ],
)
def test_t5_files_that_are_no_csv_are_named(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        sources.csv(write(tmp_path, change(b"name,n\nsome,1\nmore,2\n" * 3)))


def test_t5_text_says_what_it_is(tmp_path: Path) -> None:
    for content, message in (
        (gzip.compress(b"x\n"), "it is compressed"),
        ("ä\nb".encode("utf-16"), "it is UTF-16; convert"),
    ):
        source = sources.text(write(tmp_path, content, "t.txt"))
        with pytest.raises(SourceError, match=rf"t.txt: {message}"):
            source.fetch(tf.constant([0], tf.int64))


def test_t5_dialects_are_checked_and_belong_to_the_state(tmp_path: Path) -> None:
    file = write(tmp_path, "a\n1\n")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"quote": ","}, "quote=',': expected None or one character"),
        ({"quote": ""}, "quote='': expected None or one character"),
        ({"comment": ""}, "comment='': expected None or what lines begin with"),
        ({"comment": '"'}, "comment='\"': expected None"),
        ({"encoding": "latin-99"}, "encoding='latin-99': Python knows no such encoding"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            sources.csv(file, **arguments)
    usual = sources.csv(file).fingerprint()
    assert not {"quote", "comment", "encoding"} & usual.keys()  # so that states that were saved before can be restored
    assert sources.csv(file, comment="#").fingerprint()["comment"] == "#"
    with pytest.raises(SourceError, match="it is no ascii"):
        sources.csv(write(tmp_path, "a\nü\n"), encoding="ascii")
