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


@pytest.mark.slow
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


def types_of_arrow() -> dict[str, Any]:
    tensors = np.arange(36, dtype=np.float32).reshape(3, 2, 3, 2)
    storage = pa.array(np.arange(18, dtype=np.int16).reshape(3, 6).tolist(), pa.list_(pa.int16(), 6))
    turned = pa.fixed_shape_tensor(pa.int16(), [2, 3], permutation=[1, 0])
    return {
        "string_view": pa.array(["a", "ü" * 20, ""], pa.string_view()),
        "binary_view": pa.array([b"a", b"\0\xff", b"x" * 30], pa.binary_view()),
        "list_view": pa.array([[1, 2], [], [3]], pa.list_view(pa.int32())),
        "large_list_view": pa.array([["a"], [], ["b", "c"]], pa.large_list_view(pa.string_view())),
        "list_view in another order": pa.ListViewArray.from_arrays([1, 0, 2], [2, 1, 0], pa.array([1.5, 2.5, 3.5])),
        "list_view of pairs": pa.array([[[1, 2]], [], [[3, 4], [5, 6]]], pa.list_view(pa.list_(pa.int32(), 2))),
        "list of string_view": pa.array([["a"], [], ["b", "c"]], pa.list_(pa.string_view())),
        "list of pairs of string_view": pa.array([["a", "b"]] * 3, pa.list_(pa.string_view(), 2)),
        "list of categories": pa.array([["a"], ["b", "a"], []], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        "number categories": pa.array([7, 8, 7]).dictionary_encode(),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(tensors),
        "turned tensor": pa.ExtensionArray.from_storage(turned, storage),
        "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1, 5], pa.int8())),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 3, pa.binary(16))),
        "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", "[]", "1"])),
        "bytes of one size": pa.array([b"ab", b"\0\0", b"cd"], pa.binary(2)),
    }


@pytest.mark.parametrize("name", types_of_arrow())
def test_t6_every_type_that_a_tensor_can_hold(tmp_path: Path, name: str) -> None:
    array = types_of_arrow()[name]
    source = sources.parquet(write(tmp_path / "a.parquet", pa.table({"x": array}), 2))
    if isinstance(array, pa.FixedShapeTensorArray):
        # Not pyarrow's to_numpy, which of turned tensors gives other values than they have (26.0).
        memory = np.array(array.storage.to_pylist()).reshape(-1, *array.type.shape)
        order = array.type.permutation or range(len(array.type.shape))
        expected = memory.transpose(0, *(1 + axis for axis in order)).tolist()
    elif name == "uuid":
        expected = [b"0" * 16] * 3
    else:
        expected = encoded(array.to_pylist())
    assert everything(source)["x"] == expected
    taken = source.fetch(tf.constant([2, 0], tf.int64))["x"]
    assert as_list(taken) == [expected[2], expected[0]]
    p = Pipeline(source).batch(3)
    assert p.element_spec["x"].dtype == source.element_spec["x"].dtype


GOOD_DEFAULTS = [
    (pa.int64(), 5, 5),
    (pa.int64(), 5.0, 5),
    (pa.int64(), -(2**63), -(2**63)),
    (pa.uint64(), 2**64 - 1, 2**64 - 1),
    (pa.int8(), np.int64(-128), -128),
    (pa.float32(), 0.1, float(np.float32(0.1))),
    (pa.float32(), -1, -1.0),
    (pa.float16(), np.float64(0.5), 0.5),
    (pa.bool_(), False, False),
    (pa.string(), "ü", "ü".encode()),
    (pa.binary(), b"\0\0", b"\0\0"),
    (pa.list_(pa.int32()), [], []),
    (pa.list_(pa.list_(pa.int32(), 2)), [], []),
    (pa.list_(pa.list_(pa.int32(), 2)), [[1, 2]], [[1, 2]]),
    (pa.list_(pa.string()), ["a", "bc"], [b"a", b"bc"]),
    (pa.list_(pa.float32(), 2), [0, 1], [0.0, 1.0]),
]


@pytest.mark.parametrize(("kind", "default", "expected"), GOOD_DEFAULTS)
def test_t6_defaults_are_taken_as_they_are(tmp_path: Path, kind: Any, default: Any, expected: Any) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"x": pa.array([None], kind)}))
    assert everything(sources.parquet(path, defaults={"x": default}))["x"] == [expected]


BAD_DEFAULTS = [
    (pa.int64(), 0.5, ValueError, "int64 cannot hold 0.5"),
    (pa.int64(), math.nan, ValueError, "int64 cannot hold nan"),
    (pa.int64(), 2**64, ValueError, "int64 cannot hold 18446744073709551616"),
    (pa.int8(), 300, ValueError, "int8 cannot hold 300"),
    (pa.uint8(), -1, ValueError, "uint8 cannot hold -1"),
    (pa.int64(), True, TypeError, "True is bool and no int64"),
    (pa.int64(), None, TypeError, "None is no int64"),
    (pa.float32(), "abc", TypeError, "'abc' is text and no float32"),
    (pa.float32(), 16777217, ValueError, "float32 cannot hold 16777217"),
    (pa.float32(), 1e39, ValueError, r"float32 cannot hold 1e\+39"),
    (pa.float16(), 70000, ValueError, "float16 cannot hold 70000"),
    (pa.bool_(), 1, TypeError, "1 is int64 and no bool"),
    (pa.string(), 1, TypeError, "1 is no text"),
    (pa.list_(pa.int32()), 3, ValueError, r"3 has shape \[\] and not \(None,\)"),
    (pa.list_(pa.int32()), [1, 2.5], ValueError, r"int32 cannot hold \[1, 2.5\]"),
    (pa.list_(pa.int32(), 2), [1], ValueError, r"\[1\] has shape \[1\] and not \(2,\)"),
    (pa.list_(pa.int32(), 2), [], ValueError, r"\[\] has shape \[0\] and not \(2,\)"),
    (pa.list_(pa.list_(pa.int32(), 2)), [[1, 2], [3]], ValueError, "is no array of shape"),
    (pa.list_(pa.string()), ["a", 1], TypeError, "1 is no text"),
]


@pytest.mark.parametrize(("kind", "default", "error", "message"), BAD_DEFAULTS)
def test_t6_defaults_that_do_not_fit_are_named(
    tmp_path: Path, kind: Any, default: Any, error: type[Exception], message: str
) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"x": pa.array([None], kind)}))
    with pytest.raises(error, match=rf"^defaults\['x'\]: .*{message}"):
        sources.parquet(path, defaults={"x": default})


def test_t6_what_is_missing_deep_inside_costs_one_row(tmp_path: Path) -> None:
    pairs = pa.array([[[1.0, 2.0], None], [[3.0, None]], None], pa.list_(pa.list_(pa.float32(), 2)))
    source = sources.parquet(write(tmp_path / "a.parquet", pa.table({"x": pairs})), defaults={"x": []})
    with pytest.raises(SourceError, match=r"row 0, column 'x': a value in the list is missing"):
        source.fetch(tf.constant([1, 0], tf.int64))
    found = source.fetch(tf.constant([1, 2], tf.int64))["x"].to_list()
    assert found[0][0][0] == 3.0
    assert math.isnan(found[0][0][1])
    assert found[1] == []


def test_small_whole_tables_are_read_as_tensors_and_others_row_by_row(tmp_path):
    """A dictionary makes a file small that is not so in memory."""
    texts = ["x" * 1000 + str(number % 3) for number in range(300_000)]
    plain = {"x": list(range(300)), "city": [f"c{number}" for number in range(300)]}
    cases = {
        "small": (plain, True),
        "lists": ({"x": [[1], [2, 3]] * 150}, False),
        "lacking": ({"x": [None, *range(299)]}, False),
        "texts": ({"text": texts}, False),
    }
    for name, (columns, whole) in cases.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=100_000 if name == "texts" else 100)
        source = sources.parquet(path)
        assert (source.row_bytes is not None) == whole, name
    assert not sources.parquet(tmp_path / "small.parquet", row_groups_in_memory=1).row_bytes
    small = Pipeline(sources.parquet(tmp_path / "small.parquet"), seed=1).shuffle().batch(8)
    rows = [
        (int(x), city) for batch in small.epoch() for x, city in zip(batch["x"], batch["city"].numpy(), strict=True)
    ]
    assert sorted(rows) == [(number, f"c{number}".encode()) for number in range(300)]


@pytest.mark.parametrize("first", ["loader", "filter", "function"])
def test_small_tables_outlive_the_graph_that_wanted_them_first(tmp_path, first):
    pq.write_table(pa.table({"x": list(range(30)), "city": ["a", "bc", "d"] * 10}), tmp_path / "t.parquet")
    p = Pipeline(sources.parquet(tmp_path / "t.parquet"))
    total = tf.function(
        lambda: p.batch(10).dataset(epochs=1).reduce(tf.constant(0, tf.int64), lambda n, b: n + tf.reduce_sum(b["x"]))
    )
    uses = {
        "loader": lambda: p.batch(10).loader()(tf.constant(2, tf.int64))["x"].numpy().tolist() == list(range(20, 30)),
        "filter": lambda: len(list(p.filter(lambda example: example["x"] < 20).batch(10).epoch())) == 2,
        "function": lambda: total() == sum(range(30)),
    }
    assert uses.pop(first)()
    assert all(use() for use in uses.values())
