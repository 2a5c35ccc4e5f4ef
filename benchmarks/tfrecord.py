"""Shuffled records per second out of TFRecord files: pipelines.sources.tfrecord against plain tf.data.

    python benchmarks/tfrecord.py [--records 1000000] [--bytes 784] [--files 1] [--batch-size 256] [--runs 5]

The files are made in a temporary folder, so they are read from the page cache. They run in turns, so that a busy
machine slows all of them alike; the ratio is taken within each turn, and median and range over the turns are printed.
Ours is a true shuffle of all records, checks both checksums of each and can be resumed anywhere. ``tf.data`` reads in
order (and checks, too) and shuffles within a buffer of 10,000.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from tftoolkit import pipelines


def write_files(folder: Path, files: int, records: int, size: int) -> list[str]:
    data = np.random.default_rng(0).bytes(size + records)
    paths = [str(folder / f"{i:05}-of-{files:05}.tfrecord") for i in range(files)]
    for i, path in enumerate(paths):
        with tf.io.TFRecordWriter(path) as writer:
            for j in range(i, records, files):
                writer.write(data[j : j + size])
    return paths


def records_per_second(dataset: tf.data.Dataset, seconds: float) -> float:
    iterator = iter(dataset)
    next(iterator)  # fills tf.data's shuffle buffer, and lets it start its threads
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += next(iterator).shape[0]
    return count / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=784)
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5, help="turns")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each candidate in each turn")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="tftoolkit-benchmark-") as folder:
        paths = write_files(Path(folder), options.files, options.records, options.bytes)
        start = time.perf_counter()
        source = pipelines.sources.tfrecord(paths)
        indexed = time.perf_counter()
        pipelines.sources.tfrecord(paths)
        print(f"index: {indexed - start:.2f} s made, {time.perf_counter() - indexed:.3f} s read again")
        ours = pipelines.Pipeline(source)
        plain = tf.data.TFRecordDataset(paths).repeat()
        candidates: dict[str, Callable[[], tf.data.Dataset]] = {
            "ours, shuffled": lambda: ours.shuffle().batch(options.batch_size).dataset().map(lambda x: x["record"]),
            "ours, in order": lambda: ours.batch(options.batch_size).dataset().map(lambda x: x["record"]),
            "tf.data, shuffle(10,000)": lambda: (
                plain.shuffle(10_000).batch(options.batch_size).prefetch(tf.data.AUTOTUNE)
            ),
            "tf.data, in order": lambda: plain.batch(options.batch_size).prefetch(tf.data.AUTOTUNE),
        }
        speeds: dict[str, list[float]] = {name: [] for name in candidates}
        for turn in range(options.runs + 1):
            for name, make in candidates.items():
                speed = records_per_second(make(), options.seconds)
                if turn:  # the first turn warms up the process and the page cache
                    speeds[name].append(speed)
    reference = speeds["tf.data, shuffle(10,000)"]
    print(f"{'':26s} {'records/s: median':>20s} {'range':>24s}   {'ratio to tf.data, shuffle(10,000)':>34s}")
    for name, values in speeds.items():
        ratios = [value / other for value, other in zip(values, reference, strict=True)]
        spread = f"{min(values):,.0f} … {max(values):,.0f}"
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        print(f"{name:26s} {statistics.median(values):20,.0f} {spread:>24s}   {ratio:>34s}")


if __name__ == "__main__":
    main()
