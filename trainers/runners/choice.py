"""Which runner a step needs: that depends on the strategy of its variables."""

from typing import Any

from tftoolkit.pipelines import Pipeline
from tftoolkit.trainers.distribution.replicas import Workers
from tftoolkit.trainers.runners.asynchronous import AsynchronousRunner
from tftoolkit.trainers.runners.runner import Runner
from tftoolkit.trainers.step import Step


def runner_for(step: Step, pipeline: Pipeline, workers: Workers, **options: Any) -> Runner | AsynchronousRunner:
    """A runner of ``step`` over ``pipeline`` on this one of the ``workers``.

    Args:
        options: ``kind``, ``steps_per_call``, ``seed`` and ``watch``, see :class:`Runner`.
    """
    if workers.strategy is None:
        return Runner(step, pipeline.element_spec, **options)
    if workers.asynchronous:
        return AsynchronousRunner(step, pipeline.element_spec, workers.strategy, **options)
    shares = (pipeline.shard(replica, workers.replica_count) for replica in workers.replicas)
    return Runner(step, tuple(share.element_spec for share in shares), workers=workers, **options)
