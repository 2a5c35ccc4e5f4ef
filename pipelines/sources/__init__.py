"""Sources of examples: random access, with a length."""

from tftoolkit.pipelines.sources.array_source import arrays
from tftoolkit.pipelines.sources.source import Source
from tftoolkit.pipelines.sources.tfds_source import tfds

__all__ = ["Source", "arrays", "tfds"]
