"""Cached elements: the same stream, computed once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from covering import slow_but

from tftoolkit import pipelines
from tftoolkit.pipelines import Pipeline, SourceError

Where = Path | None


def source(size: int = 30) -> Any:
    words = [list(range(i, i + i % 5)) for i in range(size)]
    return pipelines.sources.arrays({"index": np.arange(size), "words": tf.ragged.constant(words, tf.int32)})


def noisy(example: dict[str, Any], key: tf.Tensor) -> dict[str, Any]:
    return {**example, "noise": tf.random.stateless_uniform([2], key)}


def doubled(example: dict[str, Any]) -> dict[str, Any]:
    return {**example, "twice": 2 * example["words"]}


def odd(example: dict[str, Any]) -> tf.Tensor:
    return example["index"] % 2 == 1


def stream(p: Pipeline) -> list[dict[str, np.ndarray]]:
    p = p.shuffle().map(noisy).batch(4, padded=True)
    return list(p.dataset(epochs=2).as_numpy_iterator())


def assert_same(left: Any, right: Any) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(params=slow_but(["memory", "disk"], "disk"))
def directory(request: Any, tmp_path: Path) -> Where:
    return tmp_path / "cache" if request.param == "disk" else None


BEFORE = {
    "filter": lambda p: p.filter(odd).map(doubled),
    "map": lambda p: p.map(doubled),
    "nothing": lambda p: p,
    "repeat": lambda p: p.take(20).repeat(2),
    "window": lambda p: p.map(lambda example: {"index": example["index"]}).window(3),
}


@pytest.mark.parametrize("before", slow_but(BEFORE, "filter"))
def test_the_stream_is_the_same(directory: Where, before: str) -> None:
    base = BEFORE[before](Pipeline(source(), seed=3))
    whole = stream(base)
    assert_same(whole, stream(base.cache(directory)))
    if directory:  # and from the files that are there now
        assert_same(whole, stream(base.cache(directory)))


@pytest.mark.slow
def test_the_stream_is_the_same_behind_two_caches() -> None:
    base = Pipeline(source(12), seed=3)
    assert_same(stream(base.repeat(2).take(20).repeat(2)), stream(base.repeat(2).cache().take(20).repeat(2).cache()))


def test_elements_are_computed_once(directory: Where) -> None:
    calls = []

    def note(index: int) -> int:
        calls.append(int(index))
        return index

    def noted(example: dict[str, Any]) -> dict[str, Any]:
        return {**example, "index": tf.ensure_shape(tf.numpy_function(note, [example["index"]], tf.int64), [])}

    p = Pipeline(source()).map(noted).cache(directory)
    assert sorted(set(calls)) == list(range(30))
    calls.clear()
    stream(p)
    assert not calls


def test_elements_of_any_shape_in_memory() -> None:
    def picture(example: dict[str, Any]) -> dict[str, Any]:
        size = tf.cast(example["index"] % 3, tf.int32)
        return {"image": tf.ensure_shape(tf.fill([size, size + 1], example["index"]), [None, None])}

    base = Pipeline(source()).map(picture)
    plain, kept = (p.batch(4, padded=True).dataset(epochs=1) for p in (base, base.cache()))
    assert_same(plain.as_numpy_iterator(), kept.as_numpy_iterator())


def test_bad_examples_are_left_out_once(directory: Where) -> None:
    def checked(example: dict[str, Any]) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_none_equal(example["index"] % 10, np.int64(3))]):
            return {"index": tf.identity(example["index"])}

    p = Pipeline(source(), on_error="skip", max_skipped=0.1).map(checked).cache(directory).batch(5)
    assert [one.examples for one in p.skipped] == [(3,), (13,), (23,)]
    seen = [i for batch in p.dataset(epochs=1) for i in batch["index"].numpy()]
    assert seen == [i for i in range(30) if i % 10 != 3]
    with pytest.raises(SourceError, match="row 3: assertion failed"):
        Pipeline(source()).map(checked).cache(directory / "other" if directory else None)


@pytest.mark.slow
def test_what_is_left_out_of_files_is_known_when_they_are_used_again(tmp_path: Path) -> None:
    def checked(example: dict[str, Any]) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_none_equal(example["index"] % 10, np.int64(3))]):
            return {"index": tf.identity(example["index"])}

    def later(example: dict[str, Any]) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_none_equal(example["index"], np.int64(17), message="17")]):
            return {"index": tf.identity(example["index"])}

    def make(on_error: str = "skip") -> Pipeline:
        p = Pipeline(source(), on_error=on_error, max_skipped=0.2).map(checked).cache(tmp_path / "cache")
        return p.map(later).batch(5)

    made, again = make(), make()
    for p in (made, again):
        seen = [i for batch in p.dataset(epochs=1) for i in batch["index"].numpy()]
        assert seen == [i for i in range(30) if i % 10 != 3 and i != 17]
        assert [one.examples for one in p.skipped] == [(3,), (13,), (17,), (23,)]
    again.restore(made.state(2))
    with pytest.raises(SourceError, match=r"'on_error': 'skip'.*delete it"):
        make("raise")


def test_a_directory_of_other_elements_is_refused(tmp_path: Path) -> None:
    Pipeline(source()).cache(tmp_path / "cache")
    with pytest.raises(SourceError, match=r"made of another source or by other stages.*delete it"):
        Pipeline(source(31)).cache(tmp_path / "cache")
    with pytest.raises(SourceError, match="by other stages"):
        Pipeline(source()).take(3).cache(tmp_path / "cache")
    (tmp_path / "cache/elements.features.json").write_text("{")
    with pytest.raises(SourceError, match="cannot be read"):
        Pipeline(source()).cache(tmp_path / "cache")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    p = Pipeline(source()).cache(tmp_path / "cache").batch(5)
    (file,) = (tmp_path / "cache").glob("*.tfrecord")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(SourceError, match=file.name):
        list(p)


def test_what_differs_between_epochs_cannot_be_cached(directory: Where) -> None:
    for p in (Pipeline(source()).shuffle(), Pipeline(source()).map(noisy)):
        with pytest.raises(ValueError, match="differs from epoch to epoch"):
            p.cache(directory)
