"""What a killed worker of a tf.data service costs: seconds, and batches lost or made by the client.

    python benchmarks/data_service.py [--turns 3] [--batches 300]

A dispatcher and two workers run as processes of their own on this machine. The client asks for ``--batches`` batches
of 32 records, each multiplied with a matrix of its own (about 10 ms of work for a batch), undisturbed, then with one
worker killed (SIGKILL) after a third of them, then with another one started two seconds later. *service.batches* is
ours, with ``patience=2``. *plain service* is the same function of batch numbers through ``distribute`` alone; it is
given up when nothing came for 10 seconds, which aren't counted. *no service* makes the batches in the client.
"""

import argparse
import contextlib
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import results
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, service, sources

BATCH, PATIENCE, GIVEN_UP = 32, 2.0, 10.0
RESTART_AFTER = 2.0
CASES = ("undisturbed", "one killed", "one killed, another started")


def make_pipeline(folder: Path, batches: int) -> Pipeline:
    path = str(folder / "x.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(batches * BATCH):
            writer.write(b"%d" % number)

    def work(example: Any, key: tf.Tensor) -> Any:
        matrix = tf.random.stateless_normal([128, 128], key)
        return {**example, "trace": tf.linalg.trace(matrix @ matrix)}

    return Pipeline(sources.tfrecord(path)).shuffle().map(work).batch(BATCH)


class Servers:
    """A dispatcher and two workers."""

    def __init__(self) -> None:
        dispatcher, self.address = self._start("dispatcher")
        self._all = [dispatcher]
        self.victim = self.add_worker()
        self.add_worker()

    def add_worker(self) -> subprocess.Popen[str]:
        process, _ = self._start("worker", self.address)
        self._all.append(process)
        return process

    def _start(self, *arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "tftoolkit.pipelines.service", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.wait()


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    running = Servers()
    try:
        yield running
    finally:
        running.end()


def ours(pipeline: Pipeline, address: str) -> Iterator[Any]:
    yield from service.batches(pipeline, address, patience=PATIENCE)


def plain(pipeline: Pipeline, address: str) -> Iterator[Any]:
    """Ends when nothing has come for a while."""
    load = pipeline.loader()
    data = tf.data.Dataset.range(pipeline.batches_per_epoch).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    sharing = tf.data.experimental.service.ShardingPolicy.DYNAMIC
    served = data.apply(tf.data.experimental.service.distribute(sharing, address))
    arrived: queue.Queue[Any] = queue.Queue()

    def receive() -> None:
        for batch in served:
            arrived.put(batch)
        arrived.put(None)

    threading.Thread(target=receive, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        while (batch := arrived.get(timeout=GIVEN_UP)) is not None:
            yield batch


def timed(batches: Iterator[Any], after: int, disturb: Callable[[], None]) -> tuple[float, int]:
    """Seconds until the last batch came, and how many came."""
    begin = last = time.perf_counter()
    count = 0
    for count, _ in enumerate(batches, 1):
        last = time.perf_counter()
        if count == after:
            disturb()
    return last - begin, count


def measure(client: Callable[..., Iterator[Any]], case: str, pipeline: Pipeline) -> tuple[float, int]:
    with servers() as running:

        def disturb() -> None:
            if case != "undisturbed":
                running.victim.send_signal(signal.SIGKILL)
            if case.endswith("started"):
                threading.Timer(RESTART_AFTER, running.add_worker).start()

        return timed(client(pipeline, running.address), pipeline.batches_per_epoch // 3, disturb)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batches", type=int, default=300)
    options = parser.parse_args()
    where = results.machine()
    figures: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="tftoolkit-benchmark-") as folder:
        pipeline = make_pipeline(Path(folder), options.batches)
        for turn in range(options.turns):
            seconds, _ = timed(iter(pipeline.dataset(epochs=1)), -1, lambda: None)
            figures.setdefault(("no service", "undisturbed"), []).append(seconds)
            for name, client in (("service.batches", ours), ("plain service", plain)):
                for case in CASES:
                    seconds, count = measure(client, case, pipeline)
                    lost = pipeline.batches_per_epoch - count
                    figures.setdefault((name, case), []).append(seconds)
                    figures.setdefault((name, f"{case}: lost"), []).append(lost)
                    print(f"turn {turn + 1}: {name}, {case}: {seconds:.2f} s, {lost} batches lost", flush=True)
    units = {metric: "batches" if metric.endswith("lost") else "s" for _, metric in figures}
    for (name, metric), values in figures.items():
        print(f"{name}, {metric}: {statistics.median(values):.4g} {units[metric]}")
    results.save("data_service", figures, units, where)


if __name__ == "__main__":
    main()
    os._exit(0)  # threads that wait for a killed worker never end
