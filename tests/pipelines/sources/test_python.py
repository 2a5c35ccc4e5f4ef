"""sources.python: readers of other libraries and of users, resumable, checked, and named where they fail."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, sources

SPEC = {
    "x": tf.TensorSpec([None, 2], tf.float32),
    "name": tf.TensorSpec([], tf.string),
    "y": tf.TensorSpec([], tf.int64),
}


class Reader:
    """Like a map-style data set of PyTorch."""

    def __init__(self, as_tuple: bool = False) -> None:
        self.as_tuple, self.reading = as_tuple, 0

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> Any:
        self.reading += 1
        assert self.reading == 1, "two threads at once"
        values = (np.full([index % 3, 2], index / 2), f"ü{index}", index * 10)
        self.reading -= 1
        return values if self.as_tuple else {**dict(zip(SPEC, values, strict=True)), "more": None}


@pytest.mark.parametrize("as_tuple", [False, True])
def test_t10_a_reader_is_a_source(as_tuple: bool) -> None:
    source = sources.python(Reader(as_tuple), SPEC, fingerprint={"version": (1, 2)})
    rows = source.fetch(tf.constant([4, 0], tf.int64))
    assert rows["x"].to_list() == [[[2.0, 2.0]], []]
    assert rows["name"].numpy().tolist() == ["ü4".encode(), "ü0".encode()]
    assert rows["y"].numpy().tolist() == [40, 0]
    assert source.element_spec == SPEC
    assert source.describe(3) == "Reader, example 3"


def test_t10_it_resumes_and_its_state_is_its_fingerprint() -> None:
    def make(version: Any) -> Pipeline:
        return Pipeline(sources.python(Reader(), SPEC, fingerprint=version), seed=1).shuffle().batch(3)

    p = make({"version": (1, 2)})
    whole = [batch["y"].numpy().tolist() for batch in p.dataset(epochs=2)]
    assert [batch["y"].numpy().tolist() for batch in p.dataset(5, epochs=2)] == whole[5:]
    saved = json.loads(json.dumps(p.state(2)))
    p.restore(saved)
    with pytest.raises(ValueError, match=r"source\.dataset"):
        make({"version": (1, 3)}).restore(saved)
    assert len(json.dumps(make("x" * 5000).state())) < 1000


def test_t10_values_of_other_kinds() -> None:
    spec = {"x": tf.TensorSpec([], tf.uint8)}
    items = [
        1,
        np.int64(2),
        tf.constant(3),
        4.0,
        np.array(5, np.float32),
        np.array([6]),
        256,
        0.5,
        "7",
        True,
        None,
        [[1], [2, 3]],
    ]
    source = sources.python(items, spec, fingerprint="list")
    assert source.fetch(tf.range(5, dtype=tf.int64))["x"].numpy().tolist() == [1, 2, 3, 4, 5]
    reasons = {
        5: r"'x': array\(\[6\]\) has shape \[1\]",
        6: "'x': uint8 cannot hold 256",
        7: "'x': uint8 cannot hold 0.5",
        8: "'x': '7' is text",
        9: "'x': True is bool and no uint8",
        10: "'x': None is no uint8",
        11: r"it has 2 values, and spec has 1 features: x",
    }
    for index, reason in reasons.items():
        with pytest.raises(SourceError, match=rf"^list, example {index}: .*{reason}"):
            source.fetch(tf.constant([index], tf.int64))


def test_t10_what_a_reader_raises_costs_one_example() -> None:
    class Broken(Reader):
        def __getitem__(self, index: int) -> Any:
            if index == 4:
                raise KeyError("the archive lacks it")
            return super().__getitem__(index)

    source = sources.python(Broken(), SPEC, fingerprint=1)
    with pytest.raises(SourceError, match=r"^Broken, example 4: KeyError: 'the archive lacks it'"):
        list(Pipeline(source).batch(2, padded=True).epoch())
    p = Pipeline(source, on_error="skip", max_skipped=0.5).batch(11, padded=True)
    assert next(iter(p))["y"].numpy().tolist() == [0, 10, 20, 30, 50, 60, 70, 80, 90, 100]


def test_t10_what_is_no_reader_is_named() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    refused: list[tuple[Any, str]] = [
        ((numbers(), SPEC, 1), "dataset: expected an object with __getitem__ and __len__, got generator"),
        ((Reader(), {}, 1), "spec: expected a dict"),
        ((Reader(), {"x": tf.float32}, 1), r"spec\['x'\]: expected a tf.TensorSpec"),
        ((Reader(), {"x": tf.TensorSpec([2, None])}, 1), r"spec\['x'\]: only the first dimension may be None"),
        ((Reader(), SPEC, None), "fingerprint: expected what identifies"),
        ((Reader(), SPEC, {1, 2}), "fingerprint: expected what can be written as JSON"),
        ((Reader(), SPEC, float("nan")), "fingerprint: expected what can be written as JSON"),
    ]
    for (dataset, spec, fingerprint), message in refused:
        with pytest.raises(TypeError, match=message):
            sources.python(dataset, spec, fingerprint=fingerprint)
