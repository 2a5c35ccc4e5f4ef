"""GradientTape steps, the training loop and its checkpoints."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tftoolkit.trainers import optimizers, schedules
    from tftoolkit.trainers.checkpointer import Checkpointer, CheckpointError, CheckpointMismatchError
    from tftoolkit.trainers.run_lock import RunLockedError
    from tftoolkit.trainers.runner import Runner
    from tftoolkit.trainers.step import Step
    from tftoolkit.trainers.trainer import Summary, Trainer, TrainingDivergedError
    from tftoolkit.trainers.update import Update

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "Checkpointer",
    "RunLockedError",
    "Runner",
    "Step",
    "Summary",
    "Trainer",
    "TrainingDivergedError",
    "Update",
    "optimizers",
    "schedules",
]

# Name → module. All of them import TensorFlow; the recipes below this package are read without it.
_HOME = {
    "CheckpointError": "checkpointer",
    "CheckpointMismatchError": "checkpointer",
    "Checkpointer": "checkpointer",
    "RunLockedError": "run_lock",
    "Runner": "runner",
    "Step": "step",
    "Summary": "trainer",
    "Trainer": "trainer",
    "TrainingDivergedError": "trainer",
    "Update": "update",
}


def __getattr__(name: str) -> Any:
    if name in ("optimizers", "schedules"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
