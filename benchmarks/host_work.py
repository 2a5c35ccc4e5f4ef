"""Share of a training step's time that is spent in Python outside of TensorFlow: in the loop, metrics and files.

    python benchmarks/host_work.py [--steps 4000]

The Trainer runs the small MLP of runners.py on a real pipeline, with a line of metrics every 100 steps. A thousand
times a second another thread looks at the stack of the training thread: it counts as TensorFlow's where the innermost
function that belongs to anybody is TensorFlow's, NumPy's or Keras', and as host work where it is ours (functions of
Python's own library belong to their caller). A profiler that counts every call would make Python slower and compiled
code not.
"""

import argparse
import os
import re
import sys
import tempfile
import threading
from types import FrameType

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import results
import runners

from tftoolkit import pipelines, trainers

FRAMEWORK = re.compile(r"site-packages/(tensorflow|keras|numpy|wrapt)/|__autograph_generated")
OURS = re.compile(r"tftoolkit|benchmarks|trainers|pipelines|custom_ops")
INTERVAL = 1e-3  # seconds


class Sampler(threading.Thread):
    """Counts where the main thread is, until ``stop`` is set.

    Not by signals: those that come while TensorFlow's eager kernels run on the main thread damaged the heap (2.21,
    without anything of ours).
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.host = self.all = 0
        self.stop = threading.Event()

    def run(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not self.stop.wait(INTERVAL):
            self._count(sys._current_frames()[main])

    def _count(self, frame: FrameType | None) -> None:
        while frame is not None:
            if FRAMEWORK.search(frame.f_code.co_filename):
                break
            if OURS.search(frame.f_code.co_filename):
                self.host += 1
                break
            frame = frame.f_back
        self.all += 1


def share(kind: str, steps: int) -> float:
    """Per cent."""
    batch = runners.one_batch("mlp")
    pipeline = pipelines.Pipeline(pipelines.sources.arrays(batch)).batch(len(batch["x"]), drop_remainder=True)
    sampler = Sampler()

    def switch(trainer: trainers.Trainer) -> None:
        if trainer.finished_steps == 200:  # by then all is compiled
            sampler.start()
        if trainer.finished_steps == steps + 200:  # the last checkpoint is not part of a step
            sampler.stop.set()

    trainer = trainers.Trainer(
        *(runners.Training("mlp"), pipeline, tempfile.mkdtemp()),
        checkpoint_every=10**9,
        runner=kind,
        hooks=[(trainers.every(steps=100), switch)],
    )
    trainer.run(steps + 300)
    return 100 * sampler.host / sampler.all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    where = results.machine()
    sys.setswitchinterval(INTERVAL / 10)
    figures = {}
    for kind in ("eager", "graph", "xla", "xla_chunk"):
        steps = {"eager": arguments.steps // 10, "xla_chunk": 5 * arguments.steps}.get(kind, arguments.steps)
        figures[kind, "host work"] = [share(kind, steps) for _ in range(3)]
        print(kind, " ".join(f"{value:.2f} %" for value in figures[kind, "host work"]), flush=True)
    results.save("host_work", figures, "% of the time", where)


if __name__ == "__main__":
    main()
