"""The examples of a pipeline that is not batched, as a source."""

from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.pipeline import Pipeline
from tftoolkit.pipelines.plan.stage import Where
from tftoolkit.pipelines.sources.rows import Rows


class PipelineExamples:
    """What a pipeline's stages make of the examples of its first epoch.

    Features of which more than the first dimension varies come as ``rows.Varied``.

    Raises:
      ValueError: the pipeline is batched.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._plan = pipeline._plan
        if self._plan.batching is not None:
            raise ValueError("examples: the pipeline is batched; give it as it is before .batch(…)")
        self.element_spec = self._plan.element_spec

    def __len__(self) -> int:
        return self._plan.length

    def fetch(self, indices: tf.Tensor) -> Rows:
        return self._plan.load_elements(Where(tf.constant(0, tf.int64), indices))[0]

    def fingerprint(self) -> dict[str, Any]:
        stages = [stage.label for stage in self._plan.stages]
        return {
            "kind": "pipeline",
            "source": self._plan.source.fingerprint(),
            "seed": self._plan.seed,
            "stages": stages,
        }

    def describe(self, index: int) -> str:
        return f"element {index}"
