"""tf.data input pipelines where a batch is a function of (seed, position): exact to resume, cheap to checkpoint."""

from tftoolkit.pipelines import audio, image, sources, tabular, text
from tftoolkit.pipelines.errors import SourceError, StateMismatchError, source_error
from tftoolkit.pipelines.pipeline import Pipeline
from tftoolkit.pipelines.plan.bad_examples import SkippedExample
from tftoolkit.pipelines.profiling import Profile
from tftoolkit.pipelines.writing import write

__all__ = [
    "Pipeline",
    "Profile",
    "SkippedExample",
    "SourceError",
    "StateMismatchError",
    "audio",
    "image",
    "source_error",
    "sources",
    "tabular",
    "text",
    "write",
]
