"""Tabular stages: statistics exact to float64, one row as in any batch, on scikit-learn's tables."""

import json
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.preprocessing import StandardScaler

from tftoolkit.pipelines import Pipeline, sources, tabular

TABLES = {"breast_cancer": load_breast_cancer(), "wine": load_wine(), "diabetes": load_diabetes(scaled=False)}
COLOURS = ["red", "green", "", "blue", "green", "ultraviolet", "red"]


def one_epoch(pipeline: Pipeline) -> dict[str, np.ndarray]:
    batches = list(pipeline.dataset(epochs=1))
    return {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize(
    ("table", "as_pipeline"),
    [
        ("breast_cancer", True),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in [
                ("breast_cancer", False),
                ("wine", False),
                ("wine", True),
                ("diabetes", False),
                ("diabetes", True),
            ]
        ),
    ],
)
def test_standardize_real_tables_with_the_training_split_only(table: str, as_pipeline: bool) -> None:
    x = TABLES[table].data
    train, test = x[::2], x[1::2]
    source = sources.arrays({"x": train})
    statistics = tabular.fit(Pipeline(source).shuffle().batch(37) if as_pipeline else source, ["x"])
    scaler = StandardScaler().fit(train)
    np.testing.assert_allclose(statistics.mean["x"], scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(statistics.std["x"], scaler.scale_, rtol=1e-12)
    assert statistics.columns["x"].count.tolist() == [len(train)] * x.shape[1]
    result = one_epoch(
        Pipeline(sources.arrays({"x": test, "id": np.arange(len(test))})).map(tabular.standardize(statistics)).batch(50)
    )
    assert result["x"].dtype == np.float32
    np.testing.assert_allclose(result["x"], scaler.transform(test), rtol=1e-5, atol=1e-6)
    assert result["id"].tolist() == list(range(len(test)))


@settings(deadline=None, max_examples=4)
@given(
    values=st.lists(st.integers(-(10**6), 10**6) | st.just(None), min_size=1, max_size=40),
    offset=st.sampled_from([0, 10**9]),
    batch=st.integers(1, 41),
)
def test_moments_are_exact_to_float64(values: list[int | None], offset: int, batch: int) -> None:
    there = [Fraction(value + offset) for value in values if value is not None]
    column = np.array([np.nan if value is None else value + offset for value in values])
    source = Pipeline(sources.arrays({"x": column})).batch(batch)
    if not there:
        with pytest.raises(ValueError, match="all values of 'x'"):
            tabular.fit(source, ["x"])
        return
    mean = sum(there) / len(there)
    variance = sum((value - mean) ** 2 for value in there) / len(there)
    statistics = tabular.fit(source, ["x"], median=True)
    assert int(statistics.columns["x"].count) == len(there)
    assert float(statistics.mean["x"]) == pytest.approx(float(mean), rel=1e-14, abs=1e-9)
    # Not x² - mean², which would have no correct digit left at an offset of 1e9.
    assert float(statistics.std["x"]) == pytest.approx(float(variance) ** 0.5, rel=1e-6, abs=1e-6)
    assert float(statistics.median["x"]) == np.median([float(value) for value in there])


def test_a_constant_column_becomes_zero_and_missing_stays_missing() -> None:
    source = sources.arrays({"x": [7, 7, 7], "y": [1.0, np.nan, 3.0]})
    stage = tabular.standardize(tabular.fit(source, ["x", "y"]))
    result = one_epoch(Pipeline(source).map(stage).batch(2))
    assert result["x"].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(result["y"], np.array([-1, np.nan, 1], np.float32))


def test_statistics_saved_and_loaded_are_the_same(tmp_path: Path) -> None:
    x = TABLES["wine"].data
    path = tmp_path / "wine.json"
    for median in (False, True):
        fitted = tabular.fit(sources.arrays({"x": x, "y": x[:, 0]}), ["x", "y"], median=median)
        fitted.save(path)
        loaded = tabular.Statistics.load(path)
        assert loaded.columns.keys() == {"x", "y"}
        for name, column in fitted.columns.items():
            for key, value in vars(column).items():
                np.testing.assert_array_equal(vars(loaded.columns[name])[key], value)
        assert tabular.standardize(loaded).__name__ == tabular.standardize(fitted).__name__
    assert [one.name for one in tmp_path.iterdir()] == ["wine.json"]
    content = json.loads(path.read_text())
    content["columns"]["x"]["mean"].pop()
    broken = json.dumps(content)
    for text in ("", "[]", "{}", '{"format": "x", "columns": {}}', broken, "\0"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"wine.json holds no statistics"):
            tabular.Statistics.load(path)


def test_a_changed_statistic_changes_the_state() -> None:
    x = TABLES["wine"].data

    def state(rows: int) -> str:
        stage = tabular.standardize(tabular.fit(sources.arrays({"x": x[:rows]}), ["x"]))
        return json.dumps(Pipeline(sources.arrays({"x": x})).map(stage).batch(5).state())

    assert state(100) == state(100)
    assert state(100) != state(101)
    names = [
        tabular.fill_missing({"x": 0.0}),
        tabular.fill_missing({"x": 1.0}),
        tabular.fill_missing({"x": 1.0}, indicator=False),
        tabular.one_hot("x", ["a", "b"]),
        tabular.one_hot("x", ["b", "a"]),
        tabular.one_hot("x", ["b", "a"], "zeros"),
        tabular.hash_buckets("x", 5),
        tabular.hash_buckets("x", 6),
    ]
    assert len({stage.__name__ for stage in names}) == len(names)


def test_fill_missing() -> None:
    x = np.array([[1, np.nan], [3, 5], [np.nan, 6], [8, 7]], np.float32)
    source = sources.arrays({"x": x, "colour": ["", "red", "", "blue"]})
    statistics = tabular.fit(source, ["x"], median=True)
    expected = {"mean": [4, 6], "median": [3, 6]}
    for kind, values in expected.items():
        result = one_epoch(Pipeline(source).map(tabular.fill_missing(getattr(statistics, kind))).batch(3))
        assert result["x"].dtype == np.float32
        assert result["x"].tolist() == [[1, values[1]], [3, 5], [values[0], 6], [8, 7]]
        assert result["x_missing"].tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]
    result = one_epoch(Pipeline(source).map(tabular.fill_missing({"x": -1, "colour": "none"}, False)).batch(3))
    assert result["colour"].tolist() == [b"none", b"red", b"none", b"blue"]
    assert result["x"].tolist() == [[1, -1], [3, 5], [-1, 6], [8, 7]]
    assert result.keys() == {"x", "colour"}


def test_one_hot() -> None:
    source = sources.arrays({"colour": COLOURS, "number": [[3, 1]] * 7})
    vocabulary = tabular.fit_vocabulary(sources.arrays({"colour": COLOURS[:5]}), "colour")
    assert vocabulary == ["", "blue", "green", "red"]
    rows = {"": [1, 0, 0, 0], "blue": [0, 1, 0, 0], "green": [0, 0, 1, 0], "red": [0, 0, 0, 1]}
    zeros = one_epoch(Pipeline(source).map(tabular.one_hot("colour", vocabulary, "zeros")).batch(3))
    assert zeros["colour"].dtype == np.float32
    assert zeros["colour"].tolist() == [rows.get(colour, [0, 0, 0, 0]) for colour in COLOURS]
    extra = one_epoch(Pipeline(source).map(tabular.one_hot("colour", vocabulary, "extra")).batch(3))
    assert extra["colour"].tolist() == [[*rows.get(colour, [0, 0, 0, 0]), colour not in rows] for colour in COLOURS]
    assert tabular.fit_vocabulary(source, "number") == [1, 3]
    numbers = one_epoch(Pipeline(source).map(tabular.one_hot("number", [1, 2, 3])).batch(3))
    assert numbers["number"][0].tolist() == [[0, 0, 1], [1, 0, 0]]


def test_an_unknown_value_is_an_error_that_names_it() -> None:
    p = Pipeline(sources.arrays({"colour": COLOURS})).map(tabular.one_hot("colour", ["red", "green", "", "blue"]))
    good = list(p.batch(5).dataset(epochs=1).take(1))
    assert good[0]["colour"].shape == [5, 4]
    with pytest.raises(
        (tf.errors.InvalidArgumentError, OSError), match=r"colour is not in the vocabulary.*ultraviolet"
    ):
        list(p.batch(7).dataset(epochs=1))


def test_hash_buckets_are_farmhash() -> None:
    # The values that TensorFlow's documentation gives.
    stage = tabular.hash_buckets("word", 3)
    words = sources.arrays({"word": ["Hello", "TensorFlow", "2.x"]})
    assert one_epoch(Pipeline(words).map(stage).batch(2))["word"].tolist() == [0, 2, 2]
    numbers = {"word": tf.range(1000)}
    buckets = tabular.hash_buckets("word", 10).over_rows(numbers)["word"].numpy()
    assert buckets.min() == 0
    assert np.bincount(buckets).min() > 70
    assert zlib.crc32(buckets.astype(np.uint8).tobytes()) == 0x64BBD54B  # in every process


def test_each_stage_alone_equals_the_data_set() -> None:
    x = TABLES["breast_cancer"].data[:20].astype(np.float32)
    x[3, 4] = x[8, 0] = np.nan
    names = [COLOURS[i % 7] for i in range(20)]
    source = sources.arrays({"x": x, "colour": names, "word": names})
    statistics = tabular.fit(source, ["x"])
    stages = [
        tabular.fill_missing(statistics.mean),
        tabular.standardize(statistics),
        tabular.one_hot("colour", ["red", "blue"], "extra"),
        tabular.hash_buckets("word", 7),
    ]
    p = Pipeline(source).shuffle()
    for stage in stages:
        p = p.map(stage)
    alone: dict[bytes, int] = {}
    for index in range(20):
        example = {"x": tf.constant(x[index]), "colour": tf.constant(names[index]), "word": tf.constant(names[index])}
        for stage in stages:
            example = stage(example)
        key = b"".join(example[name].numpy().tobytes() for name in sorted(example))
        alone[key] = alone.get(key, 0) + 1
    rows: dict[bytes, int] = {}
    for batch in p.batch(7).dataset(epochs=1):
        for row in range(len(batch["x"])):
            key = b"".join(batch[name][row].numpy().tobytes() for name in sorted(batch))
            rows[key] = rows.get(key, 0) + 1
    assert rows == alone


def data(**features: Any) -> Pipeline:
    return Pipeline(sources.arrays(features))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tabular.fit(data(x=[1.0, np.inf]).batch(2), ["x"]), ValueError, "'x' holds an infinite value"),
        (lambda: tabular.fit(data(x=["a"]).batch(2), ["x"]), ValueError, "'x' is string; only real columns"),
        (lambda: tabular.fit(data(x=[1.0]).batch(2), ["y"]), ValueError, r"no feature 'y', only \['x'\]"),
        (lambda: tabular.fit(data(x=[1.0]).batch(2), "x"), TypeError, "features: expected a list of names"),
        (lambda: tabular.fit(data(x=[1.0]), ["x"]), ValueError, "batch"),
        (lambda: tabular.fit(data(x=[1.0]).batch(1), ["x"]).median, ValueError, r"fit\(…, median=True\)"),
        (lambda: data(x=[1]).map(tabular.fill_missing({"x": 1})), ValueError, "'x' is int32, which cannot be missing"),
        (
            lambda: data(x=[1.0], x_missing=[0.0]).map(tabular.fill_missing({"x": 1})),
            ValueError,
            "a feature 'x_missing' already",
        ),
        (lambda: tabular.one_hot("x", ["a"], "ignore"), ValueError, "unknown='ignore': expected 'error'"),
        (lambda: tabular.one_hot("x", []), ValueError, "vocabulary: expected at least one value"),
        (lambda: tabular.one_hot("x", ["a", "a"]), ValueError, "each only once"),
        (lambda: data(x=[1.5]).map(tabular.one_hot("x", [1])), ValueError, "'x' is float32; expected strings"),
        (lambda: tabular.hash_buckets("x", 0), ValueError, "buckets=0"),
        (lambda: tabular.hash_buckets("x", 2.5), TypeError, "buckets: expected an integer"),
        (lambda: data(x=[1.5]).map(tabular.hash_buckets("x", 3)), ValueError, "'x' is float32; expected strings"),
        (lambda: data(y=[1]).map(tabular.hash_buckets("x", 3)), ValueError, r"no feature 'x', only \['y'\]"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
