"""GradientTape steps, the training loop and its checkpoints."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tftoolkit.trainers import faults, heartbeat, hooks, optimizers, schedules
    from tftoolkit.trainers.best import Best
    from tftoolkit.trainers.checkpointer import Checkpointer, CheckpointError, CheckpointMismatchError
    from tftoolkit.trainers.divergence import TrainingDivergedError
    from tftoolkit.trainers.events import Every, every
    from tftoolkit.trainers.gradients import Gradients, Losses
    from tftoolkit.trainers.interrupts import TrainingTerminated
    from tftoolkit.trainers.quantization import FakeQuantization
    from tftoolkit.trainers.recompute import rematerialize
    from tftoolkit.trainers.replicas import distributed_strategy
    from tftoolkit.trainers.retracing import RetracingWarning, explain_retracing
    from tftoolkit.trainers.run_lock import RunLockedError
    from tftoolkit.trainers.runner import Runner
    from tftoolkit.trainers.step import Step
    from tftoolkit.trainers.trainer import Summary, Trainer
    from tftoolkit.trainers.tuning import find_batch_size, find_lr
    from tftoolkit.trainers.update import Update
    from tftoolkit.trainers.weights_io import LoadReport, load_weights, save_weights

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
    "Step",
    "Summary",
    "Trainer",
    "TrainingDivergedError",
    "TrainingTerminated",
    "Update",
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
    "Best": "best",
    "CheckpointError": "checkpointer",
    "CheckpointMismatchError": "checkpointer",
    "Checkpointer": "checkpointer",
    "Every": "events",
    "FakeQuantization": "quantization",
    "Gradients": "gradients",
    "LoadReport": "weights_io",
    "Losses": "gradients",
    "RetracingWarning": "retracing",
    "RunLockedError": "run_lock",
    "Runner": "runner",
    "Step": "step",
    "Summary": "trainer",
    "Trainer": "trainer",
    "TrainingDivergedError": "divergence",
    "TrainingTerminated": "interrupts",
    "Update": "update",
    "distributed_strategy": "replicas",
    "every": "events",
    "explain_retracing": "retracing",
    "find_batch_size": "tuning",
    "find_lr": "tuning",
    "load_weights": "weights_io",
    "rematerialize": "recompute",
    "save_weights": "weights_io",
}


def __getattr__(name: str) -> Any:
    if name in ("faults", "heartbeat", "hooks", "optimizers", "schedules"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
