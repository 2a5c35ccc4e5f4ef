"""What grows with the size of the data, the number of files, the number of workers and the size of a model.

    python benchmarks/scale.py [--what examples shards workers checkpoints] [--turns 3] [--megabytes 10 100 500 2000]
    python benchmarks/scale.py --plot docs/scale.png     # draws benchmarks/results.csv

examples     10^3 … 10^9 examples that a source computes from their numbers, shuffled, batches of 256: time and
             processor time per batch, memory that the pipeline and 200 batches take, bytes of its state as JSON.
shards       100,000 records of 100 bytes in 1 … 10,000 TFRecord files, shuffled, batches of 256: start without and with
             an index, per batch as above, and the most files that were open at once (/proc/self/fd).
workers      the share of worker 0 of 1 … 64: 64 rows of batches of 64 x workers, out of 10^6 computed examples.
checkpoints  8 variables of 10 MB … 2 GB in all, saved and restored by Checkpointer, plainly and asynchronously, and by
             tf.train.CheckpointManager, which neither hashes nor flushes to the disk. *disk*: the same bytes by write
             and fsync, and by read. What is restored lies in the page cache. *memory* is the peak of private memory
             above what the process held before.

All that is compared runs in turns in one process.
"""

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import results
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, sources
from tftoolkit.trainers import Checkpointer

BATCH, BATCHES = 256, 200
EXAMPLES = [10**power for power in range(3, 10)]
RECORDS, SHARDS = 100_000, [1, 10, 100, 1000, 10_000]
ROWS_OF_WORKER, WORKERS = 64, [1, 2, 4, 8, 16, 32, 64]
UNITS = {
    "per batch": "ms", "CPU per batch": "ms", "memory": "MB", "state": "B", "start, no index": "s", "start": "s",
    "CPU of the start": "s", "open files": "files",
}  # fmt: skip

Figures = dict[tuple[str, str], list[float]]


class Arithmetic:
    """Examples that are computed from their numbers, so that there can be any number of them."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.element_spec = {"x": tf.TensorSpec([], tf.int64), "y": tf.TensorSpec([], tf.float32)}

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"x": 3 * indices + 1, "y": tf.cast(indices, tf.float32) / 7}

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "arithmetic", "length": self._length}

    def describe(self, index: int) -> str:
        return f"example {index}"


class Peak:
    """The most private memory that the process held inside of ``with``, above what it held before."""

    def __enter__(self) -> "Peak":
        gc.collect()
        self._before = self._most = _private_memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, _private_memory())
        self._most = max(self._most, _private_memory())

    @property
    def megabytes(self) -> float:
        return (self._most - self._before) / 1e6


def _private_memory() -> int:
    words = Path("/proc/self/statm").read_text().split()
    return (int(words[1]) - int(words[2])) * os.sysconf("SC_PAGE_SIZE")


def _per_batch(pipeline: Pipeline, add: Callable[[str, float], None]) -> None:
    with Peak() as peak:
        batches = iter(pipeline.dataset())
        for _ in range(20):
            next(batches)
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(BATCHES):
            next(batches)
        add("per batch", (time.perf_counter() - begin) / BATCHES * 1e3)
        add("CPU per batch", (time.process_time() - cpu) / BATCHES * 1e3)
        add("open files", len(os.listdir("/proc/self/fd")))
    add("memory", peak.megabytes)
    add("state", len(json.dumps(pipeline.state())))


def _turns(turns: int, measure: Callable[[int, Callable[[str, float], None]], None], sizes: list[int]) -> Figures:
    """``measure(size, add)`` of every size in turn; the first turn warms up."""
    figures: Figures = defaultdict(list)
    for turn in range(turns + 1):
        for size in sizes:
            print(f"turn {turn}: {size:,}", flush=True)
            measure(size, lambda metric, value, s=size, t=turn: figures[f"{s:,}", metric].append(value) if t else None)
    return figures


def examples(turns: int) -> Figures:
    def measure(size: int, add: Callable[[str, float], None]) -> None:
        _per_batch(Pipeline(Arithmetic(size)).shuffle().batch(BATCH, drop_remainder=True), add)

    return _without(_turns(turns, measure, EXAMPLES), "open files")


def workers(turns: int) -> Figures:
    def measure(count: int, add: Callable[[str, float], None]) -> None:
        p = Pipeline(Arithmetic(10**6)).shuffle().batch(ROWS_OF_WORKER * count, drop_remainder=True)
        _per_batch(p.shard(0, count), add)

    return _without(_turns(turns, measure, WORKERS), "open files")


def shards(turns: int) -> Figures:
    def measure(count: int, add: Callable[[str, float], None]) -> None:
        pattern = folder / str(count) / "*.tfrecord"
        if not pattern.parent.exists():
            _write_shards(pattern.parent, count)
        for index in pattern.parent.glob("*.index.npz"):
            index.unlink()
        for start in ("start, no index", "start"):
            begin, cpu = time.perf_counter(), time.process_time()
            source = sources.tfrecord(pattern)
            add(start, time.perf_counter() - begin)
        add("CPU of the start", time.process_time() - cpu)
        _per_batch(Pipeline(source).shuffle().batch(BATCH, drop_remainder=True), add)

    with tempfile.TemporaryDirectory(prefix="tftoolkit-benchmark-") as name:
        folder = Path(name)
        return _turns(turns, measure, SHARDS)


def _write_shards(folder: Path, count: int) -> None:
    folder.mkdir()
    data = np.random.default_rng(0).bytes(100 + RECORDS)
    for shard in range(count):
        with tf.io.TFRecordWriter(str(folder / f"{shard:05}.tfrecord")) as writer:
            for i in range(RECORDS * shard // count, RECORDS * (shard + 1) // count):
                writer.write(data[i : i + 100])


def _without(figures: Figures, metric: str) -> Figures:
    return {key: values for key, values in figures.items() if key[1] != metric}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoints(turns: int, megabytes: list[int]) -> Figures:
    figures: Figures = defaultdict(list)
    for size in megabytes:
        random = np.random.default_rng(size)
        variables = {f"v{i}": tf.Variable(random.random(size * 31_250, np.float32)) for i in range(8)}  # 1/8 of it each
        for turn in range(turns):
            for name, save in SAVERS.items():
                print(f"{size:,} MB, turn {turn + 1}: {name}", flush=True)
                with tempfile.TemporaryDirectory(prefix="tftoolkit-benchmark-") as folder:
                    for metric, value in save(variables, Path(folder)):
                        figures[name, f"{size:,} MB, {metric}"].append(value)
        del variables
    return figures


def _measured(name: str, action: Callable[[], Any]) -> Iterator[tuple[str, float]]:
    with Peak() as peak:
        begin = time.perf_counter()
        action()
        yield name, time.perf_counter() - begin
    yield f"memory to {name}", peak.megabytes


def _ours(variables: dict[str, tf.Variable], folder: Path, asynchronous: bool = False) -> Iterator[tuple[str, float]]:
    with Checkpointer(folder, asynchronous=asynchronous) as checkpointer:
        with Peak() as peak:
            begin = time.perf_counter()
            checkpointer.save(1, variables, {})
            yield "save", time.perf_counter() - begin
            checkpointer.wait()
            yield "until written", time.perf_counter() - begin
        yield "memory to save", peak.megabytes
        yield from _measured("restore", lambda: checkpointer.restore(variables))


def _manager(variables: dict[str, tf.Variable], folder: Path) -> Iterator[tuple[str, float]]:
    checkpoint = tf.train.Checkpoint(variables=variables)
    manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=3)
    yield from _measured("save", manager.save)
    yield from _measured("restore", lambda: checkpoint.restore(manager.latest_checkpoint).assert_consumed())


def _disk(variables: dict[str, tf.Variable], folder: Path) -> Iterator[tuple[str, float]]:
    arrays = [variable.numpy() for variable in variables.values()]

    def write() -> None:
        with (folder / "raw").open("wb") as file:
            for array in arrays:
                file.write(array)
            file.flush()
            os.fsync(file.fileno())

    def read() -> None:
        with (folder / "raw").open("rb") as file:
            for array in arrays:
                file.readinto(array)

    yield from ((metric, value) for metric, value in _measured("save", write) if metric == "save")
    yield from ((metric, value) for metric, value in _measured("restore", read) if metric == "restore")


SAVERS: dict[str, Callable[[dict[str, tf.Variable], Path], Iterator[tuple[str, float]]]] = {
    "Checkpointer": _ours,
    "Checkpointer, asynchronous": lambda variables, folder: _ours(variables, folder, asynchronous=True),
    "CheckpointManager": _manager,
    "disk": _disk,
}


# --- results ----------------------------------------------------------------------------------------------------------


def plot(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), layout="constrained")
    _curves(axes[0, 0], "scale_examples", {"CPU per batch": "CPU per batch (ms)", "memory": "memory (MB)"}, "examples")
    _curves(
        axes[0, 1],
        "scale_shards",
        {"CPU per batch": "CPU per batch (ms)", "open files": "open files"},
        "TFRecord files",
    )
    _curves(
        axes[0, 2], "scale_shards", {"start, no index": "without an index", "start": "with an index"}, "TFRecord files"
    )
    _curves(axes[1, 0], "scale_workers", {"CPU per batch": "CPU per batch (ms)", "memory": "memory (MB)"}, "workers")
    axes[0, 2].set_ylabel("start (s)")
    rows = [row for row in results.read() if row["benchmark"] == "scale_checkpoints"]
    for axis, metrics in ((axes[1, 1], ("save", "restore")), (axes[1, 2], ("memory to save", "memory to restore"))):
        for number, saver in enumerate(SAVERS):
            for metric, line in zip(metrics, ("-o", "--s"), strict=True):
                points = [
                    (int(row["metric"].split(" MB")[0].replace(",", "")), float(row["value"]))
                    for row in rows
                    if row["variant"] == saver and row["metric"].endswith(f" MB, {metric}")
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), line, color=f"C{number}", label=f"{saver}: {metric}")
        axis.set_xlabel("MB of variables")
        axis.set_xscale("log")
    axes[1, 1].set_yscale("log")
    axes[1, 1].set_ylabel("s")
    axes[1, 2].set_yscale("symlog", linthresh=10)
    axes[1, 2].set_ylabel("MB above what was held before")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def _curves(axis: Any, benchmark: str, metrics: dict[str, str], label: str) -> None:
    for metric, name in metrics.items():
        rows = [row for row in results.read() if (row["benchmark"], row["metric"]) == (benchmark, metric)]
        sizes = [int(row["variant"].replace(",", "")) for row in rows]
        spread = [
            [float(end) for end in row["spread"].split("–")] if row["spread"] else [float(row["value"])] * 2
            for row in rows
        ]
        axis.plot(sizes, [float(row["value"]) for row in rows], "-o", label=name)
        axis.fill_between(sizes, *zip(*spread, strict=True), alpha=0.2)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(label)


def main() -> None:
    what = {"examples": examples, "shards": shards, "workers": workers}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="*", default=[*what, "checkpoints"], choices=[*what, "checkpoints"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[10, 100, 500, 2000])
    parser.add_argument("--plot", type=Path, help="only draw what was measured")
    options = parser.parse_args()
    for name in [] if options.plot else options.what:
        where = results.machine()
        if name == "checkpoints":
            figures = checkpoints(options.turns, options.megabytes)
            units = {metric: "MB" if "memory" in metric else "s" for _, metric in figures}
        else:
            figures, units = what[name](options.turns), UNITS
        results.save(f"scale_{name}", figures, units, where)
        print(results.table(f"scale_{name}"))
    if options.plot:
        plot(options.plot)


if __name__ == "__main__":
    main()
