"""Functions of the trainer for its ``hooks``: more for TensorBoard than numbers.

::

    trainers.Trainer(..., hooks=[
        (trainers.every(epochs=1), hooks.histograms()),
        (trainers.every(steps=500), hooks.images("samples", draw)),
        (trainers.every(steps=1000), hooks.profile()),
        ("start", hooks.graph),
    ])

They only look: a run with them ends as one without.
"""

import fnmatch
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.trainers.loop.events import Run


def histograms(pattern: str = "*") -> Callable[[Run], None]:
    """Histograms of the floating-point variables whose names match ``pattern`` (``*`` stands for anything)."""

    def write(trainer: Run) -> None:
        with trainer.summary_writer.as_default(step=trainer.finished_steps):
            for name, variable in trainer.step.named_variables().items():
                if variable.dtype.is_floating and fnmatch.fnmatchcase(name, pattern):
                    tf.summary.histogram(f"variables/{name}", variable)

    return write


def images(name: str, draw: Callable[[], Any], *, largest_number: int = 8) -> Callable[[Run], None]:
    """Pictures that ``draw()`` returns: [number, height, width, 1, 3 or 4]; uint8, or floats from 0 to 1.

    Raises:
        ValueError: when called, ``draw`` returned something else.
    """

    def write(trainer: Run) -> None:
        pictures = np.asarray(draw())
        if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3, 4):
            raise ValueError(f"images {name!r}: expected [number, height, width, channels], got shape {pictures.shape}")
        if pictures.dtype != np.uint8 and pictures.dtype.kind != "f":
            raise ValueError(f"images {name!r}: expected uint8 or floats, got {pictures.dtype}")
        with trainer.summary_writer.as_default(step=trainer.finished_steps):
            tf.summary.image(name, pictures, max_outputs=largest_number)

    return write


def graph(trainer: Run) -> None:
    """The graph of one step."""
    if trainer.graph is not None:
        with trainer.summary_writer.as_default(step=0):
            tf.summary.graph(trainer.graph)


def profile(*, calls: int = 2) -> Callable[[Run], None]:
    """A window of TensorFlow's profiler, for TensorBoard: from the first time it is called to the ``calls``-th.

    So ``(every(steps=50), profile())`` traces the steps 50 to 100. Later calls do nothing. Raises ValueError where
    ``calls`` is below 2.
    """
    if calls < 2:
        raise ValueError(f"profile: calls must be at least 2, where it begins and where it ends, but is {calls}")
    called = 0

    def trace(trainer: Run) -> None:
        nonlocal called
        called += 1
        if called == 1:
            tf.profiler.experimental.start(str(trainer.directory / "tensorboard"))
        elif called == calls:
            tf.profiler.experimental.stop()

    return trace


def weights_and_biases(**options: Any) -> Callable[[dict[str, Any]], None]:
    """A function for the trainer's ``sinks``: sends each line of ``metrics.jsonl`` to Weights & Biases.

    Args:
        options: for ``wandb.init``, which is called with the first line. ``mode="offline"`` needs no network. So that a
            resumed run goes on in the same place give it an ``id``, and ``resume="allow"``.

    Raises:
        ImportError: ``wandb`` isn't installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ImportError("weights_and_biases needs wandb: pip install wandb") from error
    run: Any = None

    def send(line: dict[str, Any]) -> None:
        nonlocal run
        if run is None:
            run = wandb.init(**options)
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
        values = {f"{line['kind']}/{name}": value for name, value in line.items() if name not in ("kind", "step")}
        run.log({**values, "step": line["step"]})

    return send
