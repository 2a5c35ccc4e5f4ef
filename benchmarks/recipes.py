"""What each recipe takes and reaches: whole runs of ``tftoolkit train``, exports with their proofs included.

Each run has a process and a folder of its own. *run* and *training* are seconds on the clock, *processor* those of all
cores; *reached* is the first metric that the recipe expects something of. Data sets are made before, once.

    python benchmarks/recipes.py [NAME ...] [--seeds 0]
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results

from tftoolkit.trainers import recipes

# Beside the recipes as they are, what they are to be compared with.
VARIANTS = {
    "text_rnn, 700 steps": ("text_rnn", "--config.steps=700"),
    "text_rnn, LSTM": ("text_rnn", "--config.model.cell=lstm"),
    "text_rnn, zeroed state": ("text_rnn", "--config.carry_state=False"),
    "digits_mlp, as in tutorials": (
        "digits_mlp", "--config.model.dropout=0.3", "--config.model.batch_norm=True", "--config.model.leaky=True",
    ),
}  # fmt: skip


def run(recipe: str, *options: str) -> dict[str, float]:
    """Trains, exports, reports; the figures by name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tftoolkit", "train", recipe, f"--directory={folder}/run", *options]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
        lines = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
    expected = recipes.load(recipe)
    metric = next(iter({**expected.get("at_least", {}), **expected.get("at_most", {})}))
    reached = [line[metric] for line in lines if line["kind"] == "eval"][-1]
    training = re.search(r"^([\d.]+) s of training$", done.stdout, re.MULTILINE)
    assert training is not None
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"reached": reached, "training": float(training[1]), "run": seconds, "processor": processor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=[*recipes.names(), *VARIANTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    where = results.machine()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    figures: dict[tuple[str, str], list[float]] = {}
    failed: list[str] = []
    for name in options.names:
        for seed in options.seeds:
            recipe, *settings = VARIANTS.get(name, (name,))
            try:
                found = run(recipe, f"--config.seed={seed}", *settings)
            except RuntimeError as error:  # of an hour's figures none is lost for one run
                failed.append(f"{name}, seed {seed}: {error}")
                print(failed[-1], flush=True)
                continue
            print(f"{name}, seed {seed}:", *(f"{what} {value:.4g}" for what, value in found.items()), flush=True)
            for what, value in found.items():
                figures.setdefault((name, what), []).append(value)
    units = {"reached": "as the recipe says", "training": "s", "run": "s", "processor": "s"}
    for table, are_texts in (("recipes", False), ("recipes_texts", True)):  # which take as long as all others together
        own = {key: values for key, values in figures.items() if key[0].startswith("text_") == are_texts}
        if own:
            results.save(table, own, units, where)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
