"""The Parquet source against pyarrow's own reading."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, sources

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 10


def table() -> Any:
    n = range(ROWS)
    return pa.table(
        {
            "i8": pa.array([i - 5 for i in n], pa.int8()),
            "u64": pa.array([2**63 + i for i in n], pa.uint64()),
            "half": pa.array([i / 4 for i in n], pa.float16()),
            "double": pa.array([i / 3 for i in n], pa.float64()),
            "flag": [i % 3 == 0 for i in n],
            "text": [f"ü{i}" for i in n],
            "bytes": pa.array([bytes([i, 255]) for i in n], pa.large_binary()),
            "category": pa.array([f"c{i % 2}" for i in n]).dictionary_encode(),
            "pair": pa.array([[i, -i] for i in n], pa.list_(pa.int32(), 2)),
            "list": pa.array([list(range(i % 4)) for i in n], pa.list_(pa.int64())),
            "words": pa.array([["a", "b"][: i % 3] for i in n], pa.large_list(pa.string())),
            "points": pa.array([[[i, i + 1]] * (i % 3) for i in n], pa.list_(pa.list_(pa.float32(), 2))),
        }
    )


def write(path: Path, rows: Any, row_group_size: int = 3) -> Path:
    pq.write_table(rows, path, row_group_size=row_group_size, write_page_checksum=True)
    return path


def everything(source: Any) -> dict[str, list[Any]]:
    rows = source.fetch(tf.range(len(source), dtype=tf.int64))
    return {name: as_list(value) for name, value in rows.items()}


def as_list(value: Any) -> list[Any]:
    return value.to_list() if isinstance(value, tf.RaggedTensor) else value.numpy().tolist()


def encoded(value: Any) -> Any:
    if isinstance(value, list):
        return [encoded(one) for one in value]
    return value.encode() if isinstance(value, str) else value


def test_every_type_comes_back_over_files_and_row_groups(tmp_path: Path) -> None:
    rows = table()
    files = [write(tmp_path / "a.parquet", rows.slice(0, 7)), write(tmp_path / "b.parquet", rows.slice(7), 100)]
    source = sources.parquet(files)
    assert source.element_spec["pair"] == tf.TensorSpec([2], tf.int32)
    assert source.element_spec["points"] == tf.TensorSpec([None, 2], tf.float32)
    assert source.element_spec["category"] == tf.TensorSpec([], tf.string)
    expected = {name: encoded(rows.column(name).to_pylist()) for name in rows.column_names}
    assert everything(source) == expected
    order = [9, 0, 8, 0, 3]
    some = source.fetch(tf.constant(order, tf.int64))
    assert {name: as_list(value) for name, value in some.items()} == {
        name: [column[i] for i in order] for name, column in expected.items()
    }
    assert source.describe(8) == f"{files[1]}, row 1"


def test_row_groups_are_read_when_needed_and_few_are_kept(tmp_path: Path) -> None:
    source = sources.parquet(write(tmp_path / "a.parquet", table(), 2), ["i8"], row_groups_in_memory=2)
    assert source._rows.kept == []
    source.fetch(tf.constant([0], tf.int64))
    assert source._rows.kept == [0]
    assert everything(source) == {"i8": list(range(-5, 5))}
    assert len(source._rows.kept) == 2


def test_any_order_is_exact_however_few_row_groups_are_kept_and_each_is_read_once(tmp_path: Path) -> None:
    rows = table()
    path = write(tmp_path / "a.parquet", rows, 2)
    expected = {name: encoded(rows.column(name).to_pylist()) for name in rows.column_names}
    order = [9, 0, 8, 1, 3, 0, 5, 7]
    for kept in (1, 2, 4, None):
        found = sources.parquet(path, row_groups_in_memory=kept).fetch(tf.constant(order, tf.int64))
        assert {name: as_list(value) for name, value in found.items()} == {
            name: [column[i] for i in order] for name, column in expected.items()
        }
    source = sources.parquet(path)
    read, reading = [], source._rows._read
    source._rows._read = lambda group: (read.append(group), reading(group))[1]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: source._rows.take(np.array(order)), range(8)))
    assert sorted(read) == [0, 1, 2, 3, 4]


def test_missing_values_inside_of_lists_move_no_other_value(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "points": pa.array([[[1, 2], None], [[3, 4]], None, [[5, 6]]], pa.list_(pa.list_(pa.int32(), 2))),
            "pair": pa.array([[1, 2], None, [3, None], [5, 6]], pa.list_(pa.int32(), 2)),
            "words": pa.array([["a"], ["b", "c"], None, []], pa.list_(pa.string())),
        }
    )
    path = write(tmp_path / "a.parquet", rows, 4)
    defaults = {"points": [[7, 8], [9, 9]], "pair": [0, 9], "words": ["none", "at all"]}
    source = sources.parquet(path, defaults=defaults)
    found = source.fetch(tf.constant([1, 3], tf.int64))
    assert {name: as_list(value) for name, value in found.items()} == {
        "points": [[[3, 4]], [[5, 6]]],
        "pair": [[0, 9], [5, 6]],
        "words": [[b"b", b"c"], []],
    }
    for row, column in ((0, "points"), (2, "pair")):
        with pytest.raises(SourceError, match=f"row {row}, column '{column}': a value in the list is missing"):
            source.fetch(tf.constant([1, row], tf.int64))
    del defaults["pair"]
    missing = sources.parquet(path, ["points", "words"], defaults=defaults).fetch(tf.constant([2], tf.int64))
    assert {name: as_list(value) for name, value in missing.items()} == {
        "points": [[[7, 8], [9, 9]]],
        "words": [[b"none", b"at all"]],
    }


def test_a_shuffled_pipeline_resumes(tmp_path: Path) -> None:
    p = Pipeline(sources.parquet(write(tmp_path / "a.parquet", table()), ["i8", "pair"]), seed=3).shuffle().batch(4)
    whole = [batch["i8"].numpy().tolist() for batch in p.dataset(epochs=2)]
    assert [batch["i8"].numpy().tolist() for batch in p.dataset(2, epochs=2)] == whole[2:]


def test_missing_values_cost_one_row_or_take_the_default(tmp_path: Path) -> None:
    rows = pa.table(
        {"f": [1.5, None, 3.0], "i": pa.array([1, 2, None], pa.int32()), "list": pa.array([[1], None, [2, None]])}
    )
    path = write(tmp_path / "a.parquet", rows)
    assert math.isnan(everything(sources.parquet(path, ["f"]))["f"][1])
    source = sources.parquet(path, ["i"])
    with pytest.raises(SourceError, match=rf"{path}, row 2, column 'i': the value is missing, .* defaults={{'i'"):
        source.fetch(tf.constant([0, 2], tf.int64))
    assert as_list(source.fetch(tf.constant([0, 1], tf.int64))["i"]) == [1, 2]
    with pytest.raises(SourceError, match="row 2, column 'list': a value in the list is missing"):
        sources.parquet(path, ["list"], defaults={"list": []}).fetch(tf.constant([0, 1, 2], tf.int64))
    assert everything(sources.parquet(path, ["f", "i"], defaults={"f": 0, "i": -1})) == {
        "f": [1.5, 0, 3],
        "i": [1, 2, -1],
    }


def test_no_damage_gives_a_wrong_row(tmp_path: Path) -> None:
    """Bytes flipped all over the file: rows come back as they were, or an error names the file."""
    rows = table().select(["i8", "double", "text", "list"])
    path = write(tmp_path / "a.parquet", rows)
    content = path.read_bytes()
    expected = {name: encoded(rows.column(name).to_pylist()) for name in rows.column_names}
    reasons = []
    for position in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            source = sources.parquet(path, rows.column_names)
        except (SourceError, ValueError, TypeError) as error:
            reasons.append(str(error))
            continue
        for i in range(len(source)):
            try:
                found = source.fetch(tf.constant([i], tf.int64))
            except SourceError as error:
                reasons.append(str(error))
                continue
            assert {name: as_list(value)[0] for name, value in found.items()} == {n: c[i] for n, c in expected.items()}
    assert len(reasons) > 10
    assert [reason for reason in reasons if str(path) not in reason] == []


def test_bad_input_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"x": [1], "when": pa.array([0], pa.timestamp("s"))}))
    with pytest.raises(TypeError, match=r"'when' of .*a.parquet is timestamp\[.*\], which no tensor can hold"):
        sources.parquet(path)
    assert everything(sources.parquet(path, ["x"])) == {"x": [1]}
    with pytest.raises(ValueError, match="has no column 'y'; there are x, when"):
        sources.parquet(path, ["y"])
    with pytest.raises(ValueError, match="defaults: there is no column 'y'"):
        sources.parquet(path, ["x"], defaults={"y": 1})
    other = write(tmp_path / "b.parquet", pa.table({"x": [1.5]}))
    with pytest.raises(ValueError, match=r"the columns of .*b.parquet have other types than those of .*a.parquet"):
        sources.parquet([path, other], ["x"])
    empty = write(tmp_path / "c.parquet", pa.table({"x": pa.array([], pa.int64())}))
    with pytest.raises(ValueError, match="there is no row in"):
        sources.parquet(empty)
    for content in (b"", b"no Parquet file at all"):
        (tmp_path / "d.parquet").write_bytes(content)
        with pytest.raises(SourceError, match=r"d.parquet is no Parquet file, or a damaged one"):
            sources.parquet(tmp_path / "d.parquet")
