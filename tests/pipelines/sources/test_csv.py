"""The CSV source: against the csv module, types, missing values, and rows that are bad."""

import csv
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tftoolkit.pipelines import Pipeline, SourceError, sources
from tftoolkit.pipelines.sources import csv_source

TEXT = st.text(st.sampled_from(list("abü\",;\n\r\t '0")), max_size=8)
INTEGER = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)


def everything(source: Any) -> dict[str, list[Any]]:
    rows = source.fetch(tf.range(len(source), dtype=tf.int64))
    return {name: value.numpy().tolist() for name, value in rows.items()}


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    file = folder / name
    file.write_bytes(text.encode())
    return file


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXT, INTEGER, FLOAT, TEXT), min_size=1, max_size=12), delimiter=st.sampled_from(",;\t"))
def test_every_value_comes_back(tmp_path: Path, rows: list[tuple[Any, ...]], delimiter: str) -> None:
    file = tmp_path / "t.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["text", "integer", "float", "quoted\nname"])
        writer.writerows(rows)
    types = {"text": tf.string, "quoted\nname": tf.string, "float": tf.float32}
    source = sources.csv(file, types=types, delimiter=delimiter, missing=[])
    found = everything(source)
    assert source.element_spec["integer"] == tf.TensorSpec([], tf.int64)
    for place, name in enumerate(["text", "integer", "float", "quoted\nname"]):
        expected = [row[place].encode() if isinstance(row[place], str) else row[place] for row in rows]
        assert found[name] == expected
    # The line on which each row begins, found in another way: rows written one by one.
    assert [source.describe(i) for i in range(len(rows))] == [
        f"{file}, line {line}" for line in _lines(rows, delimiter)
    ]


def _lines(rows: list[tuple[Any, ...]], delimiter: str) -> list[int]:
    """Python's reader counts \\r, \\n and \\r\\n as line breaks, inside quotes too."""
    import io
    import re

    line, found = 1, []
    for row in [("text", "integer", "float", "quoted\nname"), *rows]:
        stream = io.StringIO(newline="")
        csv.writer(stream, delimiter=delimiter).writerow(row)
        found.append(line)
        line += len(re.findall(r"\r\n|\r|\n", stream.getvalue()))
    return found[1:]


def test_types_are_inferred(tmp_path: Path) -> None:
    file = write(tmp_path, "i,f,s,gap,none\n1,1,a,5,\n-2,2.5,1e3x,,NA\n3,nan,1_000,7,null\n")
    source = sources.csv(file)
    types = {name: spec.dtype.name for name, spec in source.element_spec.items()}
    assert types == {"i": "int64", "f": "float32", "s": "string", "gap": "float32", "none": "string"}
    rows = everything(source)
    assert rows["s"] == [b"a", b"1e3x", b"1_000"]
    assert math.isnan(rows["gap"][1])
    assert rows["none"] == [b"", b"", b""]


def test_types_columns_defaults_and_names_are_taken(tmp_path: Path) -> None:
    file = write(tmp_path, "\ufeff1,0.1,TRUE,300\n\n?,0.1,0,-5\n")
    source = sources.csv(
        file,
        names=["a", "b", "c", "d"],
        columns=["c", "a", "b"],
        types={"a": tf.uint8, "b": tf.float64, "c": tf.bool},
        missing=["?"],
        defaults={"a": 255},
    )
    assert list(source.element_spec) == ["c", "a", "b"]
    assert everything(source) == {"c": [True, False], "a": [1, 255], "b": [0.1, 0.1]}
    assert source.describe(1) == f"{file}, line 3"


BAD = [
    ("a,b\n1,2\nx,3\n4,5\n", {"types": {"a": tf.int32}}, r"line 3, column 'a': 'x' is no int32 \["),
    ("a,b\n1,2\n,3\n4,5\n", {"types": {"a": tf.int32}}, r"line 3, column 'a': the value is missing, .* defaults={'a'"),
    ("a,b\n1,2\n3\n4,5\n", {}, r"line 3, 1 values for 2 columns"),
    ("a,b\n1,2\n3,4,5\n4,5\n", {}, r"line 3, 3 values for 2 columns"),
    ("a,b\n1,2\n300,4\n4,5\n", {"types": {"a": tf.uint8}}, r"'300' does not fit into uint8"),
    ("a,b\n1,2\n1e39,4\n4,5\n", {"types": {"a": tf.float32}}, r"'1e39' is too large for float32"),
    ("a,b\n1,2\n1_0,4\n4,5\n", {"types": {"a": tf.float32}}, r"'1_0' is no float32"),
    (
        "a,b\n1,2\nnan,4\n4,5\n",
        {"types": {"a": tf.float32}, "allow_nan": False},
        r"column 'a': 'nan' is no finite number",
    ),
    ("a,b\n1,2\n,4\n4,5\n", {"types": {"a": tf.float64}, "allow_nan": False}, r"column 'a': '' is no finite number"),
    ("a,b\n1,2\nyes,4\n1,5\n", {"types": {"a": tf.bool}}, r"'yes' is no bool"),
    ('a,b\n"1",2\n"x\ny",4\n4,5\n', {"types": {"a": tf.int64}}, r"line 3, column 'a': 'x\\ny' is no int64"),
]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [pytest.param(*one, marks=() if number == 10 else pytest.mark.slow) for number, one in enumerate(BAD)],
)
def test_a_bad_row_costs_itself_in_a_pipeline(
    tmp_path: Path, text: str, arguments: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, text)
    batches = iter(Pipeline(sources.csv(file, **arguments)).batch(1))
    next(batches)
    with pytest.raises(SourceError, match=f"^{file}, .*{message}"):
        next(batches)
    p = Pipeline(sources.csv(file, **arguments), on_error="skip", max_skipped=0.5).batch(3)
    assert next(iter(p))["b"].numpy().tolist() == [2, 5]


@pytest.mark.parametrize(("text", "arguments", "message"), BAD)
def test_a_bad_row_costs_itself_and_is_named(
    tmp_path: Path, text: str, arguments: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, text)
    source = sources.csv(file, **arguments)
    with pytest.raises(SourceError, match=f"^{file}, .*{message}"):
        source.fetch(tf.constant([1], tf.int64))
    assert source.fetch(tf.constant([0, 2], tf.int64))["b"].numpy().tolist() == [2, 5]


def test_a_value_unlike_the_rows_the_type_was_inferred_from_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_source, "_INFERRED_FROM", 2)
    file = write(tmp_path, "a\n1\n2\n3\n4.5\n")
    source = sources.csv(file)
    with pytest.raises(SourceError, match=r"line 5, column 'a': '4.5' is no int64 .*types={'a': "):
        source.fetch(tf.constant([3], tf.int64))
    assert source.fetch(tf.constant([2, 0], tf.int64))["a"].numpy().tolist() == [3, 1]


def test_bytes_that_are_no_utf8_cost_one_row(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes("s,n\ngut,1\nüber,2\nauch,3\n".encode("latin-1"))
    source = sources.csv(file)
    with pytest.raises(SourceError, match=r"line 3, column 's': .* is no UTF-8"):
        source.fetch(tf.constant([1], tf.int64))
    assert source.fetch(tf.constant([0, 2], tf.int64))["s"].numpy().tolist() == [b"gut", b"auch"]


def test_files_follow_one_another_and_a_pipeline_resumes(tmp_path: Path) -> None:
    header = "n,s\n"
    files = [
        write(tmp_path, header + "".join(f'{i},"v{i}"\n' for i in range(part, part + 30)), f"{part}.csv")
        for part in (0, 30)
    ]
    p = Pipeline(sources.csv(tmp_path / "*.csv"), seed=1).shuffle().batch(7)
    whole = [batch["n"].numpy().tolist() for batch in p.dataset(epochs=2)]
    assert sorted(itertools.chain(*whole[:9])) == list(range(60))
    assert [batch["n"].numpy().tolist() for batch in p.dataset(5, epochs=2)] == whole[5:]
    assert sources.csv(files).describe(31) == f"{files[1]}, line 3"
    write(tmp_path, header + "1,2\n", "30.csv")
    with pytest.raises(ValueError, match=r"source.files.30.csv: saved \d+, this pipeline 8"):
        Pipeline(sources.csv(files)).batch(7).restore(Pipeline(sources.csv(files)).batch(7).state() | p.state())


@pytest.mark.parametrize(
    ("text", "arguments", "error", "message"),
    [
        ("", {}, ValueError, "is empty; it needs a header"),
        ("a,b\n", {}, ValueError, "there is no row in"),
        ("a,a\n1,2\n", {}, ValueError, "has the column name 'a' twice"),
        ("a,\n1,2\n", {}, ValueError, "has a column without a name"),
        ("a\n1\n", {"types": {"b": tf.int64}}, ValueError, "types: there is no column 'b'; there are a"),
        ("a\n1\n", {"types": {"a": "number"}}, TypeError, r"types\['a'\]: expected a dtype, got 'number'"),
        ("a\n1\n", {"types": {"a": tf.complex64}}, TypeError, r"types\['a'\]: expected an integer"),
        ("a\n1\n", {"columns": ["b"]}, ValueError, "columns: there is no column 'b'"),
        ("a\n1\n", {"delimiter": ",,"}, ValueError, "delimiter=',,': expected one character"),
        (
            "a\n1\n",
            {"types": {"a": tf.uint8}, "defaults": {"a": -1}},
            ValueError,
            r"defaults\['a'\]: '-1' does not fit",
        ),
        ("a\nx\ny\n", {"types": {"a": tf.int64}}, ValueError, "no row can be read; the first: .*line 2"),
        ('a,b\n1,2\n3,"open\n4,5\n', {}, SourceError, "line 3: unexpected end of data.*a quote too many or too few"),
        ('a,b\n1,2\n3,"x"y\n4,5\n', {}, SourceError, "line 3: .* expected after"),
    ],
)
def test_what_cannot_be_opened_is_named(
    tmp_path: Path, text: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sources.csv(write(tmp_path, text), **arguments)


def test_headers_must_agree(tmp_path: Path) -> None:
    files = [write(tmp_path, "a\n1\n", "x.csv"), write(tmp_path, "b\n1\n", "y.csv")]
    with pytest.raises(ValueError, match=r"y.csv has the columns \['b'\], but .*x.csv has \['a'\]"):
        sources.csv(files)


def test_large_tables_are_read_in_blocks(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(-1000, 1000, 20_000)
    source = sources.csv(write(tmp_path, "n\n" + "\n".join(map(str, numbers)) + "\n"))
    assert everything(source)["n"] == numbers.tolist()
