"""Share of a training step's time that is spent in Python outside of TensorFlow: in the loop, metrics and files.

    python benchmarks/host_work.py [--steps 2000]

The Trainer runs the small MLP of runners.py on a real pipeline, with a line of metrics every 100 steps, under Python's
profiler. What runs in TensorFlow, NumPy and Keras, or is called directly from there, counts as TensorFlow's;
everything else that the training thread does is host work. The profiler slows Python down and compiled code not at all,
so the true share is smaller.
"""

import argparse
import cProfile
import os
import pstats
import re
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import results
import runners

from tftoolkit import pipelines, trainers

FRAMEWORK = re.compile(
    r"site-packages/(tensorflow|keras|numpy|wrapt)/|tensorflow|numpy|TFE_|pybind11|autograph_generated"
)


def share(kind: str, steps: int) -> float:
    batch = runners.one_batch("mlp")
    pipeline = pipelines.Pipeline(pipelines.sources.arrays(batch)).batch(len(batch["x"]), drop_remainder=True)
    profile = cProfile.Profile()

    def switch(trainer: trainers.Trainer) -> None:
        if trainer.finished_steps == 200:  # by then all is compiled
            profile.enable()
        if trainer.finished_steps == steps + 200:  # the last checkpoint is not part of a step
            profile.disable()

    trainer = trainers.Trainer(
        *(runners.Training("mlp"), pipeline, tempfile.mkdtemp()),
        checkpoint_every=10**9,
        runner=kind,
        hooks=[(trainers.every(steps=100), switch)],
    )
    trainer.run(steps + 300)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values())
    return 100 * sum(host_time(place, own, callers) for place, (_, _, own, _, callers) in stats.items()) / total


def host_time(place: tuple[str, int, str], own: float, callers: dict[tuple[str, int, str], tuple[float, ...]]) -> float:
    if FRAMEWORK.search(f"{place[0]} {place[2]}"):
        return 0.0
    return own - sum(one[2] for caller, one in callers.items() if FRAMEWORK.search(f"{caller[0]} {caller[2]}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    where = results.machine()
    figures = {}
    for kind, steps in (
        ("eager", arguments.steps // 10),
        *((kind, arguments.steps) for kind in ("graph", "xla", "xla_chunk")),
    ):
        figures[kind, "host work"] = [share(kind, steps) for _ in range(3)]
        print(kind, " ".join(f"{value:.2f} %" for value in figures[kind, "host work"]), flush=True)
    results.save("host_work", figures, "% of the time", where)


if __name__ == "__main__":
    main()
