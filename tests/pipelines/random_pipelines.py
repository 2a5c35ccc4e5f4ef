"""Pipelines of every kind of source and stage for the tests of exactness, and a program that runs some of them.

``python random_pipelines.py FOLDER`` reads a JSON list of [case, number of a batch, how many] from stdin and prints the
digests of these batches.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import soundfile
import tensorflow as tf
from array_record.python import array_record_module
from hypothesis import strategies as st

from tftoolkit.pipelines import Pipeline, image, sources
from tftoolkit.pipelines.datasets import digits
from tftoolkit.pipelines.keys import uniform_int
from tftoolkit.pipelines.plan.stage import Paired, Vectorized
from tftoolkit.pipelines.sources.rows import is_dense, is_ragged
from tftoolkit.pipelines.sources.token_file import write_token_file

Rows = list[dict[str, np.ndarray]]

# ---- sources: small files of every kind, written once into a folder


def write_files(folder: Path) -> None:
    random = np.random.default_rng(0)
    records = [_example(i, random.integers(0, 9, i % 4)) for i in range(17)]
    for name, part in (("a.tfrecord", records[:10]), ("b.tfrecord", records[10:])):
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for record in part:
                writer.write(record)
    writer = array_record_module.ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    for i in range(9):
        path = folder / "images" / "cd"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, [3 + i % 3, 4 + i % 2, 3], np.uint8)
        path.write_bytes(tf.io.encode_png(pixels).numpy())
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    (folder / "lines.txt").write_text("".join(f"{' '.join(words[: i % 9])} ä{i}\n" for i in range(13)))
    (folder / "table.csv").write_text(
        "number,name,price\n" + "".join(f'{i},"item {i}, ""new""",{i}.25\n' for i in range(14))
    )
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": range(15), "values": [list(range(i % 5)) for i in range(15)]})
    pyarrow.parquet.write_table(table, folder / "table.parquet", row_group_size=4)
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", random.uniform(-1, 1, 20 + 7 * i), 8000)
    documents = [random.integers(0, 300, length) for length in (5, 0, 11, 3, 29, 7, 1, 2, 8)]
    write_token_file(folder / "corpus.tokens", documents, 300, "")
    digits.prepare(folder / "tfds")


def _example(label: int, values: np.ndarray) -> bytes:
    feature = {
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "values": tf.train.Feature(int64_list=tf.train.Int64List(value=values)),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


FEATURES = {"label": tf.io.FixedLenFeature([], tf.int64), "values": tf.io.VarLenFeature(tf.int64)}


def _arrays(count: int = 19, first: int = 0) -> sources.Source:
    label = np.arange(first, first + count)
    return sources.arrays({"label": label, "x": np.float32(label[:, np.newaxis] * [[1.5, -1]])})


SOURCES: dict[str, Callable[[Path], sources.Source]] = {
    "arrays": lambda folder: _arrays(),
    "tfrecord": lambda folder: sources.tfrecord(folder / "*.tfrecord", FEATURES),
    "array_record": lambda folder: sources.array_record(folder / "a.array_record", FEATURES),
    "images": lambda folder: sources.images(folder / "images"),
    "text": lambda folder: sources.text(folder / "lines.txt"),
    "csv": lambda folder: sources.csv(folder / "table.csv"),
    "parquet": lambda folder: sources.parquet(folder / "table.parquet"),
    "audio": lambda folder: sources.audio(folder / "*.wav"),
    "tokens": lambda folder: sources.tokens(folder / "corpus.tokens"),
    "token_windows": lambda folder: sources.token_windows(folder / "corpus.tokens", 6, stride=4, targets=True),
    "tfds": lambda folder: sources.tfds("digits", split="train[:12]", data_dir=folder / "tfds"),
    "mix": lambda folder: sources.mix({"few": (_arrays(5), 2), "many": (_arrays(13, 100), 3)}),
}

# ---- functions that fit examples with any features


def _size(example: dict[str, Any]) -> tf.Tensor:
    feature = example[min(example)]
    return tf.strings.length(feature) if feature.dtype == tf.string else tf.size(feature)


def measured(example: dict[str, Any]) -> dict[str, Any]:
    return {**example, "size": tf.reduce_max(_size(example))}


def noisy(example: dict[str, Any], key: tf.Tensor) -> dict[str, Any]:
    return {**example, "noise": tf.random.stateless_normal([2], key)}


def even_size(example: dict[str, Any]) -> tf.Tensor:
    return tf.reduce_max(_size(example)) % 2 == 0


def _drawn(rows: dict[str, Any], keys: tf.Tensor) -> dict[str, Any]:
    return {**rows, "drawn": uniform_int(keys, 2, 1000)}


def _blended(rows: dict[str, Any], partners: dict[str, Any], keys: tf.Tensor) -> dict[str, Any]:
    first = min(rows)
    return {**rows, "blended": tf.stack([rows[first], partners[first]], 1), "blend": uniform_int(keys, 1, 1000)}


FUNCTIONS: dict[str, Any] = {
    "measured": measured,
    "noisy": noisy,
    "even_size": even_size,
    "drawn": Vectorized("drawn", _drawn),
    "blended": Paired("blended", _blended),
    "decode": image.decode(),
}

# ---- cases


@dataclasses.dataclass(frozen=True)
class Case:
    """A pipeline as text, so that a failure can be read, and sent to another process."""

    source: str
    seed: int
    stages: tuple[tuple[str, dict[str, Any]], ...] = ()

    def __str__(self) -> str:
        stages = [
            f".{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in self.stages
        ]
        return f"Pipeline({self.source}, seed={self.seed}){''.join(stages)}"

    __repr__ = __str__

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        source, seed, stages = json.loads(text).values()
        return cls(source, seed, tuple((name, arguments) for name, arguments in stages))

    def build(self, folder: Path) -> Pipeline:
        p = Pipeline(SOURCES[self.source](folder), seed=self.seed)
        return functools.reduce(lambda p, stage: apply(p, *stage), self.stages, p)


def apply(p: Pipeline, name: str, arguments: dict[str, Any]) -> Pipeline:
    functions = {k: FUNCTIONS[v] for k, v in arguments.items() if k in ("function", "predicate")}
    made: Pipeline = getattr(p, name)(**{**arguments, **functions})
    return made


class _Drawn:
    """A case while it is being drawn."""

    def __init__(self, draw: st.DrawFn, folder: Path) -> None:
        self.draw = draw
        self.case = Case(draw(st.sampled_from(list(SOURCES))), draw(st.integers(0, 2**63 - 1)))
        self.p = self.case.build(folder)

    def add(self, name: str, **arguments: Any) -> None:
        self.p = apply(self.p, name, arguments)
        self.case = dataclasses.replace(self.case, stages=(*self.case.stages, (name, arguments)))

    def add_stage(self) -> None:
        plan, draw = self.p._plan, self.draw
        specs = plan.element_spec
        options = ["measured", "noisy", "drawn", "take"]
        if not plan.shuffled and (self.case.source != "mix" or all(name == "map" for name, _ in self.case.stages)):
            options.append("shuffle")
        if plan.length < 60:
            options.append("repeat")
        if plan.length > 1 and all(map(is_dense, specs.values())):
            options.append("window")
        if self.may_plan(self.case.stages):
            options += ["filter", "cache"]
        if self.sequences() and self.may_plan_behind_shuffle():
            options.append("pack")
        if "image" in specs and specs["image"].dtype == tf.string and specs["image"].shape.rank == 0:
            options.append("decode")
        option = draw(st.sampled_from(options))
        if option in FUNCTIONS:
            self.add("map", function=option)
        elif option == "take":
            self.add("take", count=draw(st.integers(1, plan.length)))
        elif option == "repeat":
            self.add("repeat", count=draw(st.integers(1, 3)))
        elif option == "window":
            self.add("window", size=draw(st.integers(1, min(4, plan.length))), shift=draw(st.integers(1, 3)))
        elif option == "pack":
            features = draw(st.sampled_from(self.sequences()))
            self.add("pack", size=draw(st.integers(1, 12)), features=features)
        elif option == "filter":
            with contextlib.suppress(ValueError):  # it may be true for none
                self.add("filter", predicate="even_size")
        else:
            self.add(option)

    def add_batch(self) -> None:
        draw, plan = self.draw, self.p._plan
        if self.sequences() and self.may_plan_behind_shuffle() and draw(st.booleans()):
            self.add(
                "bucket",
                batch_size=draw(st.integers(1, 6)),
                boundaries=[3, 10, 5000],
                feature=draw(st.sampled_from(self.sequences())),
                pad_to_boundary=False,
            )
        else:
            size = draw(st.integers(1, 9))
            drop = size <= plan.length and draw(st.booleans())
            whole = all(is_dense(spec) or is_ragged(spec) for spec in plan.element_spec.values())
            padded = not whole or draw(st.booleans())
            self.add("batch", batch_size=size, drop_remainder=drop, padded=padded)
        if all(map(is_dense, self.p._plan.row_spec.values())) and draw(st.booleans()):
            self.add("map", function="blended")
        whole = all(is_dense(spec) for spec in self.p._plan.row_spec.values())
        if whole and self.p._plan.batching.uniform and draw(st.booleans()):
            self.add("stack", count=draw(st.integers(1, 3)))

    def sequences(self) -> list[str]:
        specs = self.p._plan.element_spec
        return [name for name, spec in specs.items() if is_ragged(spec) and spec.dtype != tf.string]

    def may_plan(self, stages: Iterable[tuple[str, dict[str, Any]]]) -> bool:
        """Whether what comes out of ``stages`` is the same in every epoch."""
        random = {"noisy", "drawn"}
        return self.case.source != "mix" and not any(
            name == "shuffle" or arguments.get("function") in random for name, arguments in stages
        )

    def may_plan_behind_shuffle(self) -> bool:
        """As ``may_plan``, for stages that take over the shuffle before them."""
        stages = list(self.case.stages)
        names = [name for name, _ in stages]
        if "shuffle" in names:
            at = names.index("shuffle")
            if any(name != "map" for name in names[at + 1 :]):
                return False
            del stages[at]
        return self.may_plan(stages)


def cases(folder: Path) -> st.SearchStrategy[Case]:
    """Random pipelines up to the batches."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Case:
        case = _Drawn(draw, folder)
        for _ in range(draw(st.integers(0, 4))):
            case.add_stage()
        case.add_batch()
        return case.case

    return drawn()


# ---- what comes out, in a form that can be compared


def workers_of(case: Case, folder: Path, count: int) -> list[Pipeline]:
    """The pipeline of each worker; batches are stacked after they have been shared out."""
    stages = case.stages
    stack = stages[-1:] if stages[-1][0] == "stack" else ()
    whole = dataclasses.replace(case, stages=stages[: len(stages) - len(stack)]).build(folder)
    shards = [whole.shard(index, count) for index in range(count)]
    return [functools.reduce(lambda p, stage: apply(p, *stage), stack, p) for p in shards]


def rows_of(batch: dict[str, Any]) -> Rows:
    """The rows of one batch, each a dict of arrays."""
    columns = {name: _rows_of_feature(feature) for name, feature in sorted(batch.items())}
    count = len(next(iter(columns.values())))
    return [{name: np.asarray(column[i]) for name, column in columns.items()} for i in range(count)]


def _rows_of_feature(feature: Any) -> Any:
    if isinstance(feature, tf.RaggedTensor):
        values, splits = feature.values.numpy(), feature.row_splits.numpy()
        return [values[begin:end] for begin, end in itertools.pairwise(splits)]
    return feature.numpy() if isinstance(feature, tf.Tensor) else feature


def batches_of(p: Pipeline, start: int, count: int) -> list[Rows]:
    """``count`` elements of the data set from ``start`` on, as rows; stacks are taken apart into their batches."""
    found = []
    for element in p.dataset(start).take(count):
        parts = [{name: f.numpy()[i] for name, f in element.items()} for i in range(p._plan.stacked)]
        found += [rows_of(batch) for batch in (parts if p._plan.stacked else [element])]
    return found


def digest(batches: list[Rows]) -> str:
    """Of everything, bit for bit."""
    made = hashlib.sha256()
    for rows in batches:
        made.update(b"batch")
        for name, value in itertools.chain.from_iterable(row.items() for row in rows):
            made.update(f"{name} {value.dtype} {value.shape}".encode())
            made.update(repr(value.tolist()).encode() if value.dtype == object else value.tobytes())
    return made.hexdigest()


if __name__ == "__main__":
    for text, position, count in json.load(sys.stdin):
        pipeline = Case.from_json(text).build(Path(sys.argv[1]))
        pipeline.restore(position)
        print(digest(batches_of(pipeline, pipeline.position, count)))
