"""How long TensorFlow takes to start and to end: plainly, and as the toolkit's own processes do it.

Runs programs that only import TensorFlow in turn, many rounds, and reports medians of their whole lives and ratios
with their spread. Keras is there, and the packages that it and TFLite import where they are installed.

    python benchmarks/startup.py [--rounds=10]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import results

OURS = "from tftoolkit import startup; startup.import_tensorflow({})"
PROGRAMS = {
    "import tensorflow": "import tensorflow",
    "command line": OURS.format(""),
    "child of an export": OURS.format("optional=False"),
}


def lived(program: str) -> tuple[float, float]:
    """Seconds, and seconds of processor time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.DEVNULL)  # notices
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    where = results.machine()
    for program in PROGRAMS.values():
        lived(program)  # files into the page cache
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(options.rounds):
        for name, program in PROGRAMS.items():
            found[name].append(lived(program))
    plain = [processor for _, processor in found["import tensorflow"]]
    figures: dict[tuple[str, str], list[float]] = {}
    for name, times in found.items():
        figures[name, "life"], processor = map(list, zip(*times, strict=True))
        figures[name, "of it processor time"] = processor
        figures[name, "processor time, plain ÷ this"] = [p / one for p, one in zip(plain, processor, strict=True)]
    for (name, metric), values in figures.items():
        print(f"{name:20} {metric:30} {statistics.median(values):5.2f} ({min(values):.2f} to {max(values):.2f})")
    units = {"life": "s", "of it processor time": "s", "processor time, plain ÷ this": "×"}
    results.save("startup", figures, units, where)


if __name__ == "__main__":
    main()
