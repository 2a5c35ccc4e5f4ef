"""``tftoolkit data inspect|index|write|profile``."""

import collections
import importlib
import math
import os
import runpy
from collections.abc import Sequence
from typing import Any

from absl import flags

from tftoolkit.cli import UsageError, import_tensorflow

_SHOWN = 200  # characters of a value
_COUNTED = 2000  # examples whose labels are counted


def run(arguments: list[str]) -> int:
    """Shows what a source holds, makes indices of TFRecord files, turns a source into files of records, or tells which
    stage of a pipeline takes the time."""
    values = flags.FlagValues()
    flags.DEFINE_integer("examples", 3, "inspect: how many examples to show", 0, flag_values=values)
    flags.DEFINE_string("format", "tfrecord", "write: tfrecord or array_record", flag_values=values)
    flags.DEFINE_integer("shards", None, "write: number of files", 1, flag_values=values)
    flags.DEFINE_integer("batches", 50, "profile: how many batches to run", 1, flag_values=values)
    flags.DEFINE_string("by", "line", "text files: line, paragraph or file", flag_values=values)
    try:
        words = values(["tftoolkit", *arguments])[1:]
    except flags.Error as error:
        raise UsageError(f"{error}. The options are --examples, --format, --shards, --batches and --by") from error
    command, *operands = words or [""]
    needed = {"inspect": "SOURCE", "index": "FILE ...", "write": "SOURCE ... DESTINATION", "profile": "PIPELINE"}
    if command not in needed:
        raise UsageError(f"data needs {', '.join(needed)}; got {command or 'nothing'}")
    if len(operands) < (2 if command == "write" else 1):
        raise UsageError(f"usage: tftoolkit data {command} {needed[command]}")
    import_tensorflow()
    if command == "index":
        _index(operands)
    elif command == "write":
        from tftoolkit.pipelines import write

        *files, destination = operands
        for file in write(open_source(files, values.by), destination, format=values.format, shards=values.shards):
            print(f"{file}  {_bytes(os.path.getsize(file))}")
    elif command == "profile":
        print(open_pipeline(operands).profile(values.batches))
    else:
        _inspect(operands, values.by, values.examples)
    return 0


def open_pipeline(words: Sequence[str]) -> Any:
    """The pipeline that a recipe trains on, or FILE.py:NAME, a Pipeline or a function that returns one."""
    from tftoolkit.pipelines import Pipeline
    from tftoolkit.trainers import recipes

    word = words[0]
    if len(words) > 1:
        raise UsageError(f"{' '.join(words)}: one pipeline at a time")
    if ".py:" not in word:
        if word not in recipes.names():
            raise UsageError(f"{word}: expected FILE.py:NAME or a recipe, one of {', '.join(recipes.names())}")
        config = recipes.load(word)
        return importlib.import_module(f"tftoolkit.jobs.{config.job}").training_pipeline(config)
    file, _, name = word.rpartition(":")
    if not os.path.isfile(file):
        raise UsageError(f"{word}: there is no file {file}")
    module = runpy.run_path(file)
    if name not in module:
        raise UsageError(f"{word}: {file} defines no {name!r}")
    pipeline = module[name] if isinstance(module[name], Pipeline) else module[name]()
    if not isinstance(pipeline, Pipeline):
        raise UsageError(f"{word}: expected a Pipeline or a function that returns one, got {type(pipeline).__name__}")
    return pipeline


def open_source(words: Sequence[str], by: str = "line") -> Any:
    """The source that command-line words name: files or patterns of one kind, a folder per class, or tfds:NAME/SPLIT.

    The kind follows from the first file's extension; records are parsed if ``pipelines.write`` wrote them.
    """
    from tftoolkit.pipelines import sources

    if words[0].startswith("tfds:"):
        name, _, split = words[0].removeprefix("tfds:").rpartition("/")
        if not name or len(words) > 1:
            raise UsageError(f"{' '.join(words)}: expected one tfds:NAME/SPLIT, as in tfds:digits/train")
        return sources.tfds(name, split)
    if os.path.isdir(words[0]):
        return _open_folder(words)
    files = list(words)
    kind = os.path.splitext(words[0])[1].lower()
    if kind in (".csv", ".tsv"):
        return sources.csv(files, delimiter="\t" if kind == ".tsv" else ",")
    if kind == ".parquet":
        return sources.parquet(files)
    if kind in (".txt", ".md"):
        return sources.text(files, by)
    if kind in (".wav", ".flac", ".ogg"):
        return sources.audio(files)
    if ".array_record" in words[0] or "tfrecord" in words[0]:
        opened = sources.array_record if ".array_record" in words[0] else sources.tfrecord
        return opened(files, "stored" if _is_stored(files) else None)
    raise UsageError(
        f"{words[0]}: which kind of source is it? Known are folders with a folder per class, tfds:NAME/SPLIT, and "
        "files named *.csv, *.tsv, *.parquet, *.txt, *.md, *.wav, *.flac, *.ogg, *tfrecord*, *.array_record*"
    )


def _open_folder(words: Sequence[str]) -> Any:
    from tftoolkit.pipelines import sources
    from tftoolkit.pipelines.sources.audio_source import EXTENSIONS

    if len(words) > 1:
        raise UsageError(f"{' '.join(words)}: one folder at a time")
    names = (name for _, _, found in os.walk(words[0]) for name in sorted(found) if not name.startswith("."))
    first = next(names, "")
    return (sources.audio if os.path.splitext(first)[1].lower() in EXTENSIONS else sources.images)(words[0])


def _is_stored(files: list[str]) -> bool:
    from tftoolkit.pipelines.sources.files import list_files
    from tftoolkit.pipelines.sources.manifest import manifest_path

    return os.path.exists(manifest_path(list_files(files)[0]))


def _index(files: list[str]) -> None:
    from tftoolkit.pipelines.sources.files import list_files
    from tftoolkit.pipelines.sources.tfrecord_index import lengths_of

    paths = list_files(files)
    for path, lengths in zip(paths, lengths_of(paths), strict=True):
        longest = f", the longest {_bytes(int(lengths.max()))}" if len(lengths) else ""
        print(f"{path}  {len(lengths):,} records, {_bytes(os.path.getsize(path))}{longest}")


def _inspect(words: list[str], by: str, examples: int) -> None:
    source = open_source(words, by)
    print(f"{len(source):,} examples")
    for name, value in source.fingerprint().items():
        if name not in ("kind", "length"):
            print(f"{name}: {_listed(value)}")
    for name, spec in source.element_spec.items():
        print(f"  {name}: {spec.dtype.name}{spec.shape}")
    classes = getattr(source, "classes", ())
    if "label" in source.element_spec and source.element_spec["label"].shape.rank == 0:
        _histogram(source, classes)
    for number in range(min(examples, len(source))):
        index = number * (len(source) - 1) // max(1, min(examples, len(source)) - 1)
        print(f"\n{source.describe(index)}")
        rows = _fetch(source, index)
        if isinstance(rows, Exception):
            print(f"  bad: {rows}")
            continue
        for name, value in rows.items():
            print(f"  {name}: {_shown(value[0].numpy())}")


def _histogram(source: Any, classes: Sequence[str]) -> None:
    """How often each label occurs, among so many examples that it is quick."""
    count = min(len(source), _COUNTED)
    rows = [_fetch(source, number * (len(source) - 1) // max(1, count - 1)) for number in range(count)]
    labels = collections.Counter(row["label"][0].numpy().item() for row in rows if not isinstance(row, Exception))
    print(f"labels{'' if count == len(source) else f' (of {count:,} examples)'}:")
    for label, number in sorted(labels.items()):
        name = f" {classes[label]}" if classes else ""
        print(f"  {_shown(label)}{name}: {number:,} ({number / count:.1%})")
    bad = count - labels.total()
    if bad:
        print(f"  of examples that cannot be read: {bad:,} ({bad / count:.1%})")


def _fetch(source: Any, index: int) -> Any:
    """One example as rows, or why it cannot be read."""
    import tensorflow as tf

    from tftoolkit.pipelines import SourceError, source_error

    try:
        return source.fetch(tf.constant([index], tf.int64))
    except SourceError as error:
        return error
    except tf.errors.OpError as error:
        return source_error(error) or error


def _listed(value: Any) -> str:
    """As ``fingerprint`` tells it: files with their sizes."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name}: {one:,}" if isinstance(one, int) else f"{name}: {one}" for name, one in value.items())


def _shown(value: Any) -> str:
    """On one line; records that are a tf.train.Example by their features."""
    if isinstance(value, bytes):
        text = _example(value) or (
            value.decode() if _is_text(value) else f"{len(value):,} bytes {value[:16].hex(' ')} …"
        )
    elif getattr(value, "size", 1) > 16:
        text = (
            f"{list(value.shape)} from {value.min()} to {value.max()}: {str(value.reshape(-1)[:16].tolist())[:-1]}, …]"
        )
    else:
        text = str(value.tolist() if hasattr(value, "tolist") else value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _is_text(value: bytes) -> bool:
    try:
        return value.decode().isprintable() or b"\0" not in value
    except UnicodeDecodeError:
        return False


def _example(record: bytes) -> str:
    import tensorflow as tf

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


def _bytes(count: int) -> str:
    power = min(4, int(math.log(max(count, 1), 1024)))
    return f"{count} B" if not power else f"{count / 1024**power:.1f} {' KMGT'[power]}iB"
