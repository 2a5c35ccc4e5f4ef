"""What is in a source or a pipeline: figures over many examples, and some examples whole."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, source_error
from tftoolkit.pipelines.errors import message_of
from tftoolkit.pipelines.examples import PipelineExamples
from tftoolkit.pipelines.sources.rows import Varied

_COUNTED = 2000  # examples that are read for the figures
_ROWS_AT_ONCE = 32
_SHOWN = 200  # characters of a value


@dataclasses.dataclass(frozen=True)
class Row:
    """One example: its features (scalars are numpy scalars or bytes), or why it cannot be read."""

    name: str
    features: dict[str, Any]
    error: str = ""


@dataclasses.dataclass
class Feature:
    """What is known about a feature; ``low`` and ``high`` are None for strings and where there is no number."""

    spec: Any
    low: Any = None
    high: Any = None


@dataclasses.dataclass(frozen=True)
class Survey:
    """What ``survey`` found out."""

    count: int
    """Examples in the source; of a batched pipeline: rows per epoch, at most."""
    seen: int
    """Examples that were read for the figures, evenly spread; of a batched pipeline, those of its first batches."""
    bad: int
    """How many of these cannot be read."""
    identity: dict[str, Any]
    """What a saved state knows about the source."""
    stored_bytes: int | None
    """Size of the source's files, if it has any."""
    example_bytes: float
    """Of the tensors of one example, the mean."""
    features: dict[str, Feature]
    label: str
    """The feature that ``labels`` counts, or ""."""
    labels: list[tuple[Any, str, int]]
    """(label, its name or "", how often)."""
    lengths: dict[str, np.ndarray]
    """For features of different lengths that of each example, in rows; for strings in bytes."""
    shown: list[Row]
    classes: tuple[str, ...]
    sample_rate: int | None
    """In Hz, of a source of sound."""


def survey(opened: Any, examples: int, label: str = "label") -> Survey:
    """Reads up to 2,000 examples of a source or a pipeline.

    Args:
      opened: a source, or a Pipeline; of a batched one the rows of its batches count as examples.
      examples: how many to keep whole, evenly spread over those read.
      label: the integer or string feature to count.
    """
    source = opened
    if isinstance(opened, Pipeline):
        if opened._plan.batching is None:
            source = PipelineExamples(opened)
        else:
            return _survey_of_batches(opened, examples, label)
    indices = spread(len(source), _COUNTED)
    figures = _Figures(source.element_spec, label, set(spread(len(indices), examples)))
    for row in _rows_of(source, indices):
        figures.add(row)
    for name in figures.lengths:
        if hasattr(source, "lengths") and source.element_spec[name].shape.rank and not figures.bad:
            figures.lengths[name] = source.lengths(name).tolist()  # of all, as it knows them
    return figures.survey(len(source), source.fingerprint(), source)


def _survey_of_batches(pipeline: Pipeline, examples: int, label: str) -> Survey:
    plan = pipeline._plan
    assert plan.batching is not None
    count = pipeline.batches_per_epoch * plan.batching.largest
    rows = list(itertools.islice(_rows_of_batches(pipeline), _COUNTED))
    if len(rows) < min(_COUNTED, count) and not rows[-1].error:
        count = len(rows)  # the whole epoch was read, and batches are not all of one size
    figures = _Figures(plan.row_spec, label, set(spread(len(rows), examples)))
    for row in rows:
        figures.add(row)
    identity = {name: value for name, value in pipeline.state(0).items() if name != "position"}
    return figures.survey(count, identity, plan.source)


class _Figures:
    """What is counted while examples go by."""

    def __init__(self, spec: Mapping[str, Any], label: str, shown: set[int]) -> None:
        self._features = {name: Feature(one) for name, one in spec.items()}
        self._label = label if label in spec and spec[label].shape.rank == 0 else ""
        self._places = shown
        self._labels: collections.Counter[Any] = collections.Counter()
        self._bytes = 0
        self._shown: list[Row] = []
        self.lengths: dict[str, list[int]] = {name: [] for name, one in spec.items() if _has_length(name, one)}
        self.seen = self.bad = 0

    def add(self, row: Row) -> None:
        if self.seen in self._places:
            self._shown.append(row)
        self.seen += 1
        if row.error:
            self.bad += 1
            return
        if self._label:
            self._labels[_plain(row.features[self._label])] += 1
        for name, value in row.features.items():
            self._bytes += len(value) if isinstance(value, bytes) else _nbytes(value)
            if name in self.lengths:
                self.lengths[name].append(len(value))
            self._widen(self._features[name], value)

    @staticmethod
    def _widen(feature: Feature, value: Any) -> None:
        if isinstance(value, bytes) or not np.size(value) or np.asarray(value).dtype.kind not in "iufb":
            return
        with np.errstate(all="ignore"):
            low, high = np.nanmin(value), np.nanmax(value)
        feature.low = low if feature.low is None else np.fmin(feature.low, low)
        feature.high = high if feature.high is None else np.fmax(feature.high, high)

    def survey(self, count: int, identity: dict[str, Any], source: Any) -> Survey:
        classes = tuple(getattr(source, "classes", ()))
        labels = sorted(self._labels.items()) if len(self._labels) < self.seen or self.seen < 50 else []
        return Survey(
            count=count,
            seen=self.seen,
            bad=self.bad,
            identity=identity,
            stored_bytes=_stored_bytes(source.fingerprint()),
            example_bytes=self._bytes / max(self.seen - self.bad, 1),
            features=self._features,
            label=self._label if labels else "",
            labels=[(one, classes[one] if classes and self._label == "label" else "", n) for one, n in labels],
            lengths={name: np.array(values, np.int64) for name, values in self.lengths.items() if values},
            shown=self._shown,
            classes=classes,
            sample_rate=getattr(source, "sample_rate", None),
        )


def _has_length(name: str, spec: Any) -> bool:
    return bool(spec.shape[0] is None if spec.shape.rank else spec.dtype == tf.string and name != "path")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _nbytes(value: np.ndarray) -> int:
    return sum(map(len, value.reshape(-1))) if value.dtype == object else value.nbytes


def spread(length: int, count: int) -> list[int]:
    """Up to ``count`` of the numbers 0 … length - 1, evenly spread, with the first and the last."""
    count = min(count, length)
    return [number * (length - 1) // max(1, count - 1) for number in range(count)]


def is_skewed(lengths: np.ndarray) -> bool:
    """Whether a histogram of them needs a logarithmic scale to show most of them."""
    return bool(lengths.max() > 10 * max(np.median(lengths), 1))


def length_edges(lengths: np.ndarray, bars: int) -> np.ndarray:
    """Whole numbers: where the bars of a histogram begin, and behind its end."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    if is_skewed(lengths):
        edges = np.geomspace(max(low, 1), high, bars + 1)
    else:
        edges = np.linspace(low, high, min(bars, high - low) + 1)
    return np.unique(np.concatenate([[low], np.ceil(edges[1:-1]), [high]]).astype(np.int64))


def _rows_of(source: Any, indices: Sequence[int]) -> Iterator[Row]:
    fetch = tf.function(source.fetch, input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    for first in range(0, len(indices), _ROWS_AT_ONCE):
        part = indices[first : first + _ROWS_AT_ONCE]
        names = [str(source.describe(index)) for index in part]
        rows = _fetched(fetch, part)
        if not isinstance(rows, Exception):
            yield from (Row(name, features) for name, features in zip(names, _taken_apart(rows), strict=True))
            continue
        for index, name in zip(part, names, strict=True):
            rows = _fetched(fetch, [index])
            failed = isinstance(rows, Exception)
            yield Row(name, {}, message_of(rows)) if failed else Row(name, next(_taken_apart(rows)))


def _fetched(fetch: Any, indices: Sequence[int]) -> Any:
    """Rows, or why they cannot be read."""
    try:
        return fetch(tf.constant(indices, tf.int64))
    except SourceError as error:
        return error
    except tf.errors.OpError as error:
        return source_error(error) or error


def _rows_of_batches(pipeline: Pipeline) -> Iterator[Row]:
    batches = iter(pipeline)
    for number in range(pipeline.batches_per_epoch):
        try:
            batch = next(batches)
        except (SourceError, tf.errors.OpError) as error:
            yield Row(f"batch {number}", {}, message_of(error))
            return
        for place, features in enumerate(_taken_apart(batch)):
            yield Row(f"batch {number}, row {place}", features)


def _taken_apart(rows: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    columns = {name: _column(feature) for name, feature in rows.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _column(feature: Any) -> list[Any]:
    """The values of a feature, row by row."""
    if isinstance(feature, Varied):
        shapes = feature.shapes.numpy()
        flat = _column(feature.values)
        return [np.reshape(values, shape) for values, shape in zip(flat, shapes, strict=True)]
    if isinstance(feature, tf.RaggedTensor):
        return np.split(feature.values.numpy(), feature.row_splits.numpy()[1:-1]) if int(feature.nrows()) else []
    return list(feature.numpy())


def _stored_bytes(identity: Mapping[str, Any]) -> int | None:
    """Of all files in a fingerprint, which tells their sizes, or their number and bytes if they are many; or None."""
    found = []
    for name, value in identity.items():
        if name == "files":
            found.append(value["bytes"] if "names and sizes, sha256" in value else sum(value.values()))
        elif isinstance(value, dict):
            found.append(_stored_bytes(value))
    sizes = [size for size in found if size is not None]
    return sum(sizes) if sizes else None


def shown(value: Any) -> str:
    """A value on one line; records that are a tf.train.Example by their features."""
    if isinstance(value, bytes):
        text = _example(value) or (
            value.decode() if _is_text(value) else f"{len(value):,} bytes {value[:16].hex(' ')} …"
        )
    elif getattr(value, "size", 1) > 16:
        first = _numbers(value.reshape(-1)[:16]).removesuffix("]")
        text = f"{list(value.shape)} from {value.min()!s} to {value.max()!s}: {first}, …]"
    else:
        text = _numbers(value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _numbers(value: Any) -> str:
    """As a list, each number in its own precision: a float32 has no more than nine digits."""
    return f"[{', '.join(map(_numbers, value))}]" if getattr(value, "ndim", 0) else str(value)


def _is_text(value: bytes) -> bool:
    try:
        return value.decode().isprintable() or b"\0" not in value
    except UnicodeDecodeError:
        return False


def _example(record: bytes) -> str:
    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception:  # google.protobuf.message.DecodeError
        return ""
    parts = []
    for name in sorted(features):
        kind = features[name].WhichOneof("kind") or "empty"
        count = len(getattr(features[name], kind).value) if kind != "empty" else 0
        parts.append(f"{name}: {kind.removesuffix('_list')}[{count}]")
    return "tf.train.Example with " + ", ".join(parts) if parts else ""


def bytes_text(count: float) -> str:
    power = min(4, int(math.log(max(count, 1), 1024)))
    return f"{count:.0f} B" if not power else f"{count / 1024**power:.1f} {' KMGT'[power]}iB"
