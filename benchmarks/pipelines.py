"""How fast pipelines deliver, next to plain tf.data, Grain and PyTorch's DataLoader doing the same work.

    python benchmarks/pipelines.py [--work records images …] [--turns 5] [--seconds 4]

records  TFRecords of 784 bytes, 1,000,000 of them, shuffled, in batches of 256 strings. Ours is a permutation of all
         records, checks both checksums of each and can be resumed anywhere; tf.data reads in order (and checks, too)
         and shuffles within a buffer of 10,000. Grain reads ArrayRecord files, its own format, with checksums as well;
         DataLoader reads the TFRecord file with os.pread at known offsets, with its checksums and without.
images   JPEG files of 320 x 320 pixels -> decode, RandAugment(2, 9), float32, batches of 32. tf.data does that with
         TensorFlow's operations in a parallel map, and once more with the compiled op that ours uses; Grain and
         DataLoader do the same with Pillow.
tokens   windows of 1024 tokens out of a file of 20 million 16-bit tokens, at random, in batches of 32. tf.data reads
         records of that length in order and shuffles within a buffer of 1,000; the others take them from a memory map.
parquet  1,000,000 rows in row groups of 65,536: five floats, two integers and a short text; batches of 256, shuffled.
         Ours is a permutation of all rows. tf.data gets pyarrow's batches through a generator and shuffles within a
         buffer of 10,000. Grain and DataLoader take rows from a table that pyarrow has read into memory; "by batch":
         a BatchSampler hands the table the numbers of a whole batch. "pyarrow, taken" is Table.take of a permutation's
         slices; "pyarrow, in order" decodes the file from front to end and does not shuffle.
csv      200,000 such rows in a CSV file. tf.data is make_csv_dataset with two parallel reads and a buffer of 10,000.
arrays   8 x 8 digits in memory, shuffled, in batches of 128, without any map.
shifted  the same, each shifted by up to one pixel and scaled to [0, 1]; tf.data by a parallel map of one example.

Each loader runs in a process of its own, in turns, so that a busy machine slows all alike, from files in the page
cache; ratios are taken within each turn. DataLoader and Grain run without workers and with two, and the faster one
stands in the table. *memory* is the peak of the process with its workers, above what it needed after importing its
framework and before making the loader; pages of mapped files are not counted. *start* is the time from making the
loader to its first batch, with reading the table where it is read into memory.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from loaders import Batches, data, with_python, with_tensorflow

WORK: dict[str, tuple[Callable[[Path], None], str]] = {  # what makes the files, and the unit
    "records": (data.make_records, "records/s"),
    "images": (data.make_pictures, "pictures/s"),
    "tokens": (data.make_tokens, "tokens/s"),
    "parquet": (data.make_parquet, "rows/s"),
    "csv": (data.make_csv, "rows/s"),
    "arrays": (data.make_digits, "examples/s"),
    "shifted": (data.make_digits, "examples/s"),
}
TABLES = ("parquet", "csv")
ALL = tuple(WORK)
LOADERS: dict[str, tuple[Callable[[str, Path, int], Batches], str, tuple[int, ...], tuple[str, ...]]] = {
    # how it is made, what is imported first, numbers of workers, which work it does
    "tftoolkit": (lambda w, folder, _: getattr(with_tensorflow, f"ours_{w}")(folder), "tensorflow", (0,), ALL),
    "tf.data": (lambda w, folder, _: getattr(with_tensorflow, f"tfdata_{w}")(folder), "tensorflow", (0,), ALL),
    "tf.data, compiled op": (
        lambda _, folder, __: with_tensorflow.tfdata_images_compiled(folder), "tensorflow", (0,), ("images",)
    ),
    "Grain": (with_python.grain, "grain", (0, 2), ALL),
    "DataLoader": (with_python.dataloader, "torch", (0, 2), ALL),
    "DataLoader, no checksums": (with_python.dataloader_unchecked, "torch", (0, 2), ("records",)),
    "DataLoader, by batch": (with_python.dataloader_by_batch, "torch", (0, 2), TABLES),
    "pyarrow, taken": (with_python.pyarrow_taken, "pyarrow", (0,), TABLES),
    "pyarrow, in order": (with_python.pyarrow_in_order, "pyarrow", (0,), TABLES),
}  # fmt: skip


def child(loader: str, work: str, folder: Path, workers: int, seconds: float) -> dict[str, float]:
    make, framework, _, _ = LOADERS[loader]
    __import__(framework)
    if framework == "tensorflow":
        import tensorflow as tf

        list(tf.data.Dataset.range(2).map(lambda x: x + 1))  # so that its own memory is there
    before = _private_memory()
    peak = [before]
    threading.Thread(target=_watch, args=(peak,), daemon=True).start()
    if loader == "tftoolkit":
        importlib.import_module("tftoolkit.pipelines").Pipeline  # noqa: B018  # loads what is loaded lazily
    begin = time.perf_counter()
    batches = make(work, folder, workers)
    next(batches)
    started = time.perf_counter() - begin
    while time.perf_counter() - begin < started + seconds / 4:  # until what is tuned or decoded once is ready
        next(batches)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += next(batches)
    return {"speed": count / elapsed, "memory": (peak[0] - before) / 1e6, "start": started}


def _watch(peak: list[float]) -> None:
    while True:
        peak[0] = max(peak[0], _private_memory())
        time.sleep(0.1)


def _private_memory() -> float:
    """Bytes of this process and its children, without pages of files."""
    import psutil

    process, total = psutil.Process(), 0
    for one in (process, *process.children(recursive=True)):
        try:
            info = one.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += info.rss - info.shared
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", default=list(ALL), choices=ALL)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        loader, work, folder, workers = options.child
        print(json.dumps(child(loader, work, Path(folder), int(workers), options.seconds)), flush=True)
        os._exit(0)  # threads and workers of the loaders are of no interest any more

    import results

    versions = {name: importlib.metadata.version(name) for name in ("grain", "torch")}
    for work in options.work:
        where = results.machine()
        make, unit = WORK[work]
        with tempfile.TemporaryDirectory(prefix="tftoolkit-benchmark-") as name:
            make(Path(name))
            figures = measure(work, Path(name), options)
        if work in TABLES:
            versions["pyarrow"] = importlib.metadata.version("pyarrow")
        units = {"speed": unit, "ratio to tf.data": "times", "memory": "MB", "start": "s"}
        results.save(
            "pipelines", figures, {f"{work} {metric}": one for metric, one in units.items()}, where, **versions
        )


def measure(work: str, folder: Path, options: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    loaders = {name: counts for name, (_, _, counts, does) in LOADERS.items() if work in does}
    candidates = [(loader, workers) for loader, counts in loaders.items() for workers in counts]
    measured: dict[tuple[str, int], list[dict[str, float]]] = {candidate: [] for candidate in candidates}
    for turn in range(options.turns):
        for loader, workers in candidates:
            command = [sys.executable, __file__, "--seconds", str(options.seconds)]
            command += ["--child", loader, work, str(folder), str(workers)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{loader}, {work}, {workers} workers failed:\n{done.stderr[-3000:]}")
            figures = json.loads(done.stdout.splitlines()[-1])
            measured[loader, workers].append(figures)
            print(f"{work}, turn {turn + 1}: {loader:24s} {workers} workers {figures['speed']:14,.0f}/s "
                  f"{figures['memory']:8.0f} MB {figures['start']:6.2f} s", flush=True)  # fmt: skip
    figures_of: dict[tuple[str, str], list[float]] = {}
    reference = [one["speed"] for one in measured["tf.data", 0]]
    for loader, counts in loaders.items():
        best = max(counts, key=lambda workers: statistics.median(one["speed"] for one in measured[loader, workers]))
        runs = measured[loader, best]
        ratios = [one["speed"] / other for one, other in zip(runs, reference, strict=True)]
        figures_of[loader, f"{work} speed"] = [one["speed"] for one in runs]
        figures_of[loader, f"{work} ratio to tf.data"] = ratios
        figures_of[loader, f"{work} memory"] = [one["memory"] for one in runs]
        figures_of[loader, f"{work} start"] = [one["start"] for one in runs]
        print(f"{work}: {loader:24s} {statistics.median(one['speed'] for one in runs):14,.0f}/s, "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) of tf.data")  # fmt: skip
    return figures_of


if __name__ == "__main__":
    main()
