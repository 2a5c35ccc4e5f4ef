"""Any source, or the examples of a pipeline, as sharded files of records."""

import os

from tftoolkit.pipelines.examples import PipelineExamples
from tftoolkit.pipelines.pipeline import Pipeline
from tftoolkit.pipelines.sources.record_files import write_records
from tftoolkit.pipelines.sources.source import Source


def write(
    examples: Source | Pipeline,
    path: str | os.PathLike[str],
    *,
    format: str = "tfrecord",
    shards: int | None = None,
) -> list[str]:
    """Writes all examples, in order, as ``tf.train.Example`` records into sharded files, and an index where needed.

    The files are ``<path>-00000-of-00004.tfrecord`` (or ``.array_record``), and ``<path>.features.json``, which comes
    last and tells the features. They appear when all of them are complete; what was begun and not finished is removed.
    ``sources.tfrecord("<path>-*.tfrecord", "stored")`` reads back exactly the same examples.

    Args:
      examples: a source, or a pipeline that is not batched: its first epoch.
      path: folder and first part of the files' names; the folder must exist.
      format: "tfrecord", with a side-car index beside each file, or "array_record".
      shards: number of files; default: one per 128 MiB, estimated from the first examples. No file stays empty.

    Returns:
      The files' paths.

    Raises:
      TypeError, ValueError: wrong arguments, or features of which more than the first dimension varies.
      FileExistsError: there are files of that name; FileNotFoundError: the folder does not exist.
      SourceError: an example cannot be read.
      OSError: a file cannot be written, as when the disk is full; says how much was written.
    """
    source = PipelineExamples(examples) if isinstance(examples, Pipeline) else examples
    return write_records(source, path, format=format, shards=shards)
