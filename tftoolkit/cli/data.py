"""``tftoolkit data inspect|index|write|profile``."""

from __future__ import annotations

import argparse
import os
import runpy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tftoolkit.cli import UsageError, import_tensorflow
from tftoolkit.cli.parser import Parser, integer, path

if TYPE_CHECKING:
    import numpy as np

_LABELS = 100  # that are printed, at most
_BARS = 8  # of a histogram of lengths


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "COMMAND ...",
        "Looks into data. SOURCE is one or more files or patterns of one kind, a folder (with a folder per class), or "
        "tfds:NAME/SPLIT; the kind follows from the files' names.",
        "tftoolkit data inspect tfds:digits/train",
        "tftoolkit data write photos/ photos.tfrecord --shards=8",
    )
    commands = parser.add_commands("commands", "COMMAND")
    _add_inspect(commands.add_parser("inspect", help="what a source or pipeline holds; a page of examples"))
    _add_index(commands.add_parser("index", help="index TFRecord files"))
    _add_write(commands.add_parser("write", help="turn a source into sharded files of records"))
    _add_profile(commands.add_parser("profile", help="find the slowest stage of a pipeline"))


def _add_inspect(parser: Parser) -> None:
    parser.describe(
        "SOURCE ...|FILE.py:NAME [OPTION ...]",
        "Prints number, features, bytes, labels and lengths of a source or a pipeline, shows some examples, and writes "
        "a page of more. SOURCE: files, a folder, or tfds:NAME/SPLIT. FILE.py:NAME: a Pipeline or a function that "
        "returns one.",
        "tftoolkit data inspect 'train-*.tfrecord' --examples=5",
        "tftoolkit data inspect my_training.py:pipeline --page=",
    )
    parser.add_argument("source", type=path, nargs="+", metavar="SOURCE", help="what to look into")
    parser.add_argument("--examples", type=integer(0), metavar="N", default=3, help="how many examples to print")
    parser.add_argument("--label", metavar="FEATURE", default="label", help="the feature whose values are counted")
    _add_by(parser)
    parser.add_argument(
        "--page", type=path, metavar="FILE", default="inspect.html", help="the page to write; empty: none"
    )
    parser.add_argument("--sheet", type=integer(1), metavar="N", default=48, help="how many examples are on the page")
    parser.add_argument("--tokenizer", type=path, metavar="FILE", help="JSON file that makes text of token numbers")
    parser.set_defaults(run=_inspect)


def _add_index(parser: Parser) -> None:
    parser.describe(
        "FILE ... [OPTION ...]",
        "Makes the side-car index of TFRecord files, which otherwise happens when they are first used, and prints the "
        "number of records in each.",
        "tftoolkit data index 'train-*.tfrecord'",
    )
    parser.add_argument("files", type=path, nargs="+", metavar="FILE", help="TFRecord files or patterns")
    parser.set_defaults(run=_index)


def _add_write(parser: Parser) -> None:
    parser.describe(
        "SOURCE ... DESTINATION [OPTION ...]",
        "Turns any source into sharded files of records with a manifest. Nothing is overwritten.",
        "tftoolkit data write photos/ photos.tfrecord --shards=8",
    )
    parser.add_argument("source", type=path, nargs="+", metavar="SOURCE", help="files, a folder, or tfds:NAME/SPLIT")
    parser.add_argument("destination", type=path, metavar="DESTINATION", help="how the files' names begin")
    parser.add_argument(
        "--format", choices=("tfrecord", "array_record"), default="tfrecord", help="of the files that are written"
    )
    parser.add_argument("--shards", type=integer(1), metavar="N", help="number of files (default: by size)")
    _add_by(parser)
    parser.set_defaults(run=_write)


def _add_profile(parser: Parser) -> None:
    parser.describe(
        "RECIPE|FILE.py:NAME [OPTION ...]",
        "Runs the stages of a pipeline one by one and names the slowest. RECIPE: the pipeline it trains on. "
        "FILE.py:NAME: a Pipeline or a function that returns one.",
        "tftoolkit data profile digits --batches=100",
    )
    parser.add_argument("pipeline", type=path, metavar="PIPELINE", help="a recipe or FILE.py:NAME")
    parser.add_argument("--batches", type=integer(1), metavar="N", default=50, help="how many batches to run")
    parser.set_defaults(run=_profile)


def _add_by(parser: Parser) -> None:
    parser.add_argument(
        "--by", choices=("line", "paragraph", "file"), default="line", help="text files: what one example is"
    )


def _write(options: argparse.Namespace) -> int:
    import_tensorflow()
    from tftoolkit.data_tools.inspection import bytes_text
    from tftoolkit.pipelines import write

    source = open_source(options.source, options.by)
    for file in write(source, options.destination, format=options.format, shards=options.shards):
        print(f"{file}  {bytes_text(os.path.getsize(file))}")
    return 0


def _profile(options: argparse.Namespace) -> int:
    import_tensorflow()
    print(open_pipeline(options.pipeline).profile(options.batches))
    return 0


def open_pipeline(word: str) -> Any:
    """The pipeline that a recipe trains on, or FILE.py:NAME, a Pipeline or a function that returns one."""
    from tftoolkit import jobs
    from tftoolkit.pipelines import Pipeline
    from tftoolkit.trainers import recipes

    if ".py:" not in word:
        if word not in recipes.names():
            raise UsageError(f"{word}: expected FILE.py:NAME or a recipe, one of {', '.join(recipes.names())}")
        config = recipes.load(word)
        job = jobs.find(config.job)(config)
        with tempfile.TemporaryDirectory() as folder:  # of a run that is not begun: some jobs keep things in it
            job.directory = Path(folder)
            job.read()
        return job.pipeline()
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


def _index(options: argparse.Namespace) -> int:
    import_tensorflow()
    from tftoolkit.data_tools.inspection import bytes_text
    from tftoolkit.pipelines.sources.files import list_files
    from tftoolkit.pipelines.sources.tfrecord_index import lengths_of

    files = list_files(options.files)
    for file, lengths in zip(files, lengths_of(files), strict=True):
        longest = f", the longest {bytes_text(int(lengths.max()))}" if len(lengths) else ""
        print(f"{file}  {len(lengths):,} records, {bytes_text(os.path.getsize(file))}{longest}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    import_tensorflow()
    from tftoolkit.data_tools.contact_sheet import write_contact_sheet
    from tftoolkit.data_tools.inspection import shown, spread, survey

    words = options.source
    if ".py:" in words[0] and len(words) > 1:
        raise UsageError(f"{' '.join(words)}: one pipeline at a time")
    opened = open_pipeline(words[0]) if ".py:" in words[0] else open_source(words, options.by)
    tokenizer = None
    if options.tokenizer:
        from tftoolkit.pipelines.text import Tokenizer

        tokenizer = Tokenizer.load(options.tokenizer)
    found = survey(opened, max(options.examples, options.sheet if options.page else 0), options.label)
    _print_survey(found)
    for row in [found.shown[place] for place in spread(len(found.shown), options.examples)]:
        print(f"\n{row.name}")
        if row.error:
            print(f"  bad: {row.error}")
        for name, value in row.features.items():
            print(f"  {name}: {shown(value)}")
    if options.page:
        write_contact_sheet(options.page, " ".join(words), found, tokenizer)
        print(f"\npage: {options.page}")
    return 0


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
    import numpy as np

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
