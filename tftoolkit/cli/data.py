"""``tftoolkit data inspect|index|write|profile``."""

import importlib
import os
import runpy
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from tftoolkit.cli import UsageError, import_tensorflow

_LABELS = 100  # that are printed, at most
_BARS = 8  # of a histogram of lengths


def run(arguments: list[str]) -> int:
    """Shows what a source holds, makes indices of TFRecord files, turns a source into files of records, or tells which
    stage of a pipeline takes the time."""
    values = flags.FlagValues()
    flags.DEFINE_integer("examples", 3, "inspect: how many examples to show", 0, flag_values=values)
    flags.DEFINE_string("format", "tfrecord", "write: tfrecord or array_record", flag_values=values)
    flags.DEFINE_integer("shards", None, "write: number of files", 1, flag_values=values)
    flags.DEFINE_integer("batches", 50, "profile: how many batches to run", 1, flag_values=values)
    flags.DEFINE_string("by", "line", "text files: line, paragraph or file", flag_values=values)
    flags.DEFINE_string("label", "label", "inspect: the feature whose values are counted", flag_values=values)
    flags.DEFINE_string("page", "inspect.html", "inspect: the page to write; empty: none", flag_values=values)
    flags.DEFINE_integer("sheet", 48, "inspect: how many examples stand on the page", 1, flag_values=values)
    flags.DEFINE_string("tokenizer", "", "inspect: JSON file that makes text of tokens", flag_values=values)
    try:
        words = values(["tftoolkit", *arguments])[1:]
    except flags.Error as error:
        options = ", ".join(f"--{name}" for name in sorted(values))
        raise UsageError(f"{error}. The options are {options}") from error
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
        from tftoolkit.data_tools.inspection import bytes_text
        from tftoolkit.pipelines import write

        *files, destination = operands
        for file in write(open_source(files, values.by), destination, format=values.format, shards=values.shards):
            print(f"{file}  {bytes_text(os.path.getsize(file))}")
    elif command == "profile":
        print(open_pipeline(operands).profile(values.batches))
    else:
        _inspect(operands, values)
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
    from tftoolkit.data_tools.inspection import bytes_text
    from tftoolkit.pipelines.sources.files import list_files
    from tftoolkit.pipelines.sources.tfrecord_index import lengths_of

    paths = list_files(files)
    for path, lengths in zip(paths, lengths_of(paths), strict=True):
        longest = f", the longest {bytes_text(int(lengths.max()))}" if len(lengths) else ""
        print(f"{path}  {len(lengths):,} records, {bytes_text(os.path.getsize(path))}{longest}")


def _inspect(words: list[str], values: flags.FlagValues) -> None:
    from tftoolkit.data_tools.contact_sheet import write_contact_sheet
    from tftoolkit.data_tools.inspection import shown, spread, survey

    opened = open_pipeline(words) if ".py:" in words[0] else open_source(words, values.by)
    tokenizer = None
    if values.tokenizer:
        from tftoolkit.pipelines.text import Tokenizer

        tokenizer = Tokenizer.load(values.tokenizer)
    found = survey(opened, max(values.examples, values.sheet if values.page else 0), values.label)
    _print_survey(found)
    for row in [found.shown[place] for place in spread(len(found.shown), values.examples)]:
        print(f"\n{row.name}")
        if row.error:
            print(f"  bad: {row.error}")
        for name, value in row.features.items():
            print(f"  {name}: {shown(value)}")
    if values.page:
        write_contact_sheet(values.page, " ".join(words), found, tokenizer)
        print(f"\npage: {values.page}")


def _print_survey(found: Any) -> None:
    from tftoolkit.data_tools.inspection import bytes_text, shown

    print(f"{found.count:,} examples")
    if found.stored_bytes is not None:
        print(f"bytes in files: {bytes_text(found.stored_bytes)}")
    about = "" if found.seen == found.count else "about "
    print(f"bytes as tensors: {about}{bytes_text(found.example_bytes * found.count)}, "
          f"{bytes_text(found.example_bytes)} each")  # fmt: skip
    for name, value in found.identity.items():
        if name not in ("kind", "length") and value != {}:
            print(f"{name}: {_listed(value)}")
    for name, feature in found.features.items():
        span = "" if feature.low is None else f", {shown(feature.low)} to {shown(feature.high)}"
        print(f"  {name}: {feature.spec.dtype.name}{feature.spec.shape}{span}")
    of = "" if found.seen == found.count else f" (of {found.seen:,} examples)"
    if found.labels:
        print(f"{found.label}s{of}:")
    for value, name, count in found.labels[:_LABELS]:
        print(f"  {shown(value)}{' ' + name if name else ''}: {count:,} ({count / found.seen:.1%})")
    if len(found.labels) > _LABELS:
        print(f"  and {len(found.labels) - _LABELS:,} more")
    for name, lengths in found.lengths.items():
        _print_lengths(name, lengths, "" if len(lengths) == found.count else f" (of {len(lengths):,} examples)")
    if found.bad:
        print(f"examples that cannot be read{of}: {found.bad:,} ({found.bad / found.seen:.1%})")


def _print_lengths(name: str, lengths: np.ndarray, of: str) -> None:
    """Median, mean and a histogram of the lengths of a feature."""
    from tftoolkit.data_tools.inspection import length_edges

    print(f"length of {name}{of}: {lengths.min():,} to {lengths.max():,}, "
          f"median {np.median(lengths):,.0f}, mean {lengths.mean():,.1f}")  # fmt: skip
    if lengths.min() == lengths.max():
        return
    edges = length_edges(lengths, _BARS)
    counts, width = np.histogram(lengths, edges)[0], len(f"{lengths.max():,}")
    for count, edge in zip(counts, edges[:-1], strict=True):
        print(f"  from {edge:>{width},}  {'█' * round(40 * count / counts.max()):<40} {count:,}")


def _listed(value: Any) -> str:
    """As ``fingerprint`` tells it: files with their sizes."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name}: {one:,}" if isinstance(one, int) else f"{name}: {one}" for name, one in value.items())
