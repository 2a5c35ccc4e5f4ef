"""GradientTape steps, the training loop and its checkpoints."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tftoolkit.trainers import faults, heartbeat, hooks, optimizers, schedules
    from tftoolkit.trainers.checkpoints.checkpointer import Checkpointer, CheckpointError, CheckpointMismatchError
    from tftoolkit.trainers.checkpoints.run_lock import RunLockedError
    from tftoolkit.trainers.checkpoints.weight_names import WeightNames, WeightRule
    from tftoolkit.trainers.checkpoints.weights_io import LoadReport, load_weights, save_weights
    from tftoolkit.trainers.distribution.replicas import distributed_strategy
    from tftoolkit.trainers.interrupts import TrainingTerminated
    from tftoolkit.trainers.loop.best import Best
    from tftoolkit.trainers.loop.events import Every, every
    from tftoolkit.trainers.loop.summary import Summary
    from tftoolkit.trainers.loop.trainer import Trainer
    from tftoolkit.trainers.quantization.quantization import FakeQuantization
    from tftoolkit.trainers.runners.retracing import RetracingWarning, explain_retracing
    from tftoolkit.trainers.runners.runner import Runner
    from tftoolkit.trainers.runners.tuning import find_batch_size, find_lr
    from tftoolkit.trainers.step import Step
    from tftoolkit.trainers.update.divergence import TrainingDivergedError
    from tftoolkit.trainers.update.gradients import Gradients, Losses
    from tftoolkit.trainers.update.recompute import rematerialize
    from tftoolkit.trainers.update.running_mean import RunningMean
    from tftoolkit.trainers.update.update import Update

__all__ = [
    "Best",
    "CheckpointError",
    "CheckpointMismatchError",
    "Checkpointer",
    "Every",
    "FakeQuantization",
    "Gradients",
    "LoadReport",
    "Losses",
    "RetracingWarning",
    "RunLockedError",
    "Runner",
    "RunningMean",
    "Step",
    "Summary",
    "Trainer",
    "TrainingDivergedError",
    "TrainingTerminated",
    "Update",
    "WeightNames",
    "WeightRule",
    "distributed_strategy",
    "every",
    "explain_retracing",
    "faults",
    "find_batch_size",
    "find_lr",
    "heartbeat",
    "hooks",
    "load_weights",
    "optimizers",
    "rematerialize",
    "save_weights",
    "schedules",
]

# Name → module. All of them import TensorFlow; the recipes below this package are read without it.
_HOME = {
    "Best": "loop.best",
    "CheckpointError": "checkpoints.checkpointer",
    "CheckpointMismatchError": "checkpoints.checkpointer",
    "Checkpointer": "checkpoints.checkpointer",
    "Every": "loop.events",
    "FakeQuantization": "quantization.quantization",
    "Gradients": "update.gradients",
    "LoadReport": "checkpoints.weights_io",
    "Losses": "update.gradients",
    "RetracingWarning": "runners.retracing",
    "RunLockedError": "checkpoints.run_lock",
    "Runner": "runners.runner",
    "RunningMean": "update.running_mean",
    "Step": "step",
    "Summary": "loop.summary",
    "Trainer": "loop.trainer",
    "TrainingDivergedError": "update.divergence",
    "TrainingTerminated": "interrupts",
    "Update": "update.update",
    "WeightNames": "checkpoints.weight_names",
    "WeightRule": "checkpoints.weight_names",
    "distributed_strategy": "distribution.replicas",
    "every": "loop.events",
    "explain_retracing": "runners.retracing",
    "find_batch_size": "runners.tuning",
    "find_lr": "runners.tuning",
    "load_weights": "checkpoints.weights_io",
    "rematerialize": "update.recompute",
    "save_weights": "checkpoints.weights_io",
}


def __getattr__(name: str) -> Any:
    if name in ("faults", "heartbeat", "hooks", "optimizers", "schedules"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
