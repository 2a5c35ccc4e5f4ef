"""Sources of examples: random access, with a length."""

from tftoolkit.pipelines.sources.array_source import arrays
from tftoolkit.pipelines.sources.mix_source import mix
from tftoolkit.pipelines.sources.source import Source
from tftoolkit.pipelines.sources.tfds_source import tfds
from tftoolkit.pipelines.sources.tfrecord_source import tfrecord
from tftoolkit.pipelines.sources.token_source import token_windows, tokens

__all__ = ["Source", "arrays", "mix", "tfds", "tfrecord", "token_windows", "tokens"]
