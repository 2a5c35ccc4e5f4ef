"""GradientTape steps, the training loop and its checkpoints."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tftoolkit.trainers import faults, optimizers, schedules
    from tftoolkit.trainers.best import Best
    from tftoolkit.trainers.checkpointer import Checkpointer, CheckpointError, CheckpointMismatchError
    from tftoolkit.trainers.gradients import Gradients, Losses
    from tftoolkit.trainers.divergence import TrainingDivergedError
    from tftoolkit.trainers.events import Every, every
    from tftoolkit.trainers.interrupts import TrainingTerminated
    from tftoolkit.trainers.run_lock import RunLockedError
    from tftoolkit.trainers.runner import Runner
    from tftoolkit.trainers.step import Step
    from tftoolkit.trainers.trainer import Summary, Trainer
    from tftoolkit.trainers.update import Update

__all__ = [
    "Best",
    "CheckpointError",
    "CheckpointMismatchError",
    "Checkpointer",
    "Gradients",
    "Losses",
    "Every",
    "RunLockedError",
    "Runner",
    "Step",
    "Summary",
    "Trainer",
    "TrainingDivergedError",
    "TrainingTerminated",
    "Update",
    "every",
    "faults",
    "optimizers",
    "schedules",
]

# Name → module. All of them import TensorFlow; the recipes below this package are read without it.
_HOME = {
    "CheckpointError": "checkpointer",
    "CheckpointMismatchError": "checkpointer",
    "Checkpointer": "checkpointer",
    "Gradients": "gradients",
    "Losses": "gradients",
    "Best": "best",
    "Every": "events",
    "RunLockedError": "run_lock",
    "Runner": "runner",
    "Step": "step",
    "Summary": "trainer",
    "Trainer": "trainer",
    "TrainingDivergedError": "divergence",
    "TrainingTerminated": "interrupts",
    "Update": "update",
    "every": "events",
}


def __getattr__(name: str) -> Any:
    if name in ("faults", "optimizers", "schedules"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
