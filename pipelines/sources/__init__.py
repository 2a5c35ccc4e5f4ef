"""Sources of examples: random access, with a length."""

from tftoolkit.pipelines.sources.array_record_source import array_record
from tftoolkit.pipelines.sources.array_source import arrays
from tftoolkit.pipelines.sources.audio_source import audio
from tftoolkit.pipelines.sources.csv_source import csv
from tftoolkit.pipelines.sources.image_source import images
from tftoolkit.pipelines.sources.mix_source import mix
from tftoolkit.pipelines.sources.parquet_source import parquet
from tftoolkit.pipelines.sources.python_source import python
from tftoolkit.pipelines.sources.source import Source
from tftoolkit.pipelines.sources.text_source import text
from tftoolkit.pipelines.sources.tfds_source import tfds
from tftoolkit.pipelines.sources.tfrecord_source import tfrecord
from tftoolkit.pipelines.sources.token_source import token_windows, tokens

__all__ = [
    "Source",
    "array_record",
    "arrays",
    "audio",
    "csv",
    "images",
    "mix",
    "parquet",
    "python",
    "text",
    "tfds",
    "tfrecord",
    "token_windows",
    "tokens",
]
