"""Examples per second of our pipeline on the digits, against plain tf.data doing the same work.

    python benchmarks/pipeline_digits.py [--runs 7] [--batch-size 64]

Both shuffle the whole training split, shift each image by at most one pixel, scale it to [0, 1] and batch. They run in
turns, so that a busy machine slows all of them alike; the ratio is taken within each turn, and median and range over
the turns are printed and written to benchmarks/results.csv. ``tf.data`` is from_tensor_slices, shuffle(all), map,
batch, prefetch, with stateful shuffling and a random op per example, as tutorials write it; it cannot be resumed in the
middle of an epoch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import results
import tensorflow as tf

from tftoolkit import pipelines

Example = dict[str, Any]


def shift_and_scale(example: Example, offset: tf.Tensor) -> Example:
    padded = tf.pad(example["image"], [[1, 1], [1, 1], [0, 0]])
    shifted = tf.slice(padded, tf.concat([offset, [0]], 0), [8, 8, 1])
    return {**example, "image": tf.cast(shifted, tf.float32) / 16.0}


def own_function(example: Example, key: tf.Tensor) -> Example:
    return shift_and_scale(example, tf.random.stateless_uniform([2], key, maxval=3, dtype=tf.int32))


def plain_function(example: Example) -> Example:
    return shift_and_scale(example, tf.random.uniform([2], maxval=3, dtype=tf.int32))


def candidates(batch_size: int) -> dict[str, tf.data.Dataset]:
    source = pipelines.sources.tfds("digits", "train")
    shuffled = pipelines.Pipeline(source).shuffle()
    arrays = source.fetch(tf.range(len(source), dtype=tf.int64))
    plain = tf.data.Dataset.from_tensor_slices(arrays).shuffle(len(source)).repeat()

    def finish(mapped: tf.data.Dataset) -> tf.data.Dataset:
        return mapped.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    return {
        "ours, random_shift + normalize": shuffled.map(pipelines.image.random_shift(1))
        .map(pipelines.image.normalize(16))
        .batch(batch_size)
        .dataset(),
        "ours, a function of one's own": shuffled.map(own_function).batch(batch_size).dataset(),
        "ours, no map": shuffled.batch(batch_size).dataset(),
        "tf.data, parallel map": finish(plain.map(plain_function, num_parallel_calls=tf.data.AUTOTUNE)),
        "tf.data, map": finish(plain.map(plain_function)),
        "tf.data, no map": finish(plain),
    }


def examples_per_second(batches: Callable[[], Example], seconds: float) -> float:
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += batches()["image"].shape[0]
    return count / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="turns")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each candidate in each turn")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    where = results.machine()

    speeds: dict[str, list[float]] = {}
    for turn in range(options.runs + 1):
        for name, dataset in candidates(options.batch_size).items():
            iterator = iter(dataset)
            examples_per_second(lambda it=iterator: next(it), 0.3)  # warm-up: tf.data tunes itself
            speed = examples_per_second(lambda it=iterator: next(it), options.seconds)
            if turn:  # the first turn warms up the process
                speeds.setdefault(name, []).append(speed)
    reference = speeds["tf.data, parallel map"]
    print(f"{'':32s} {'examples/s: median':>20s} {'range':>20s}   {'ratio to tf.data, parallel map':>32s}")
    for name, values in speeds.items():
        ratios = [value / other for value, other in zip(values, reference, strict=True)]
        spread = f"{min(values):,.0f} … {max(values):,.0f}"
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        print(f"{name:32s} {statistics.median(values):20,.0f} {spread:>20s}   {ratio:>32s}")
    figures = {(name, f"batch {options.batch_size}"): values for name, values in speeds.items()}
    results.save("pipeline_digits", figures, "examples/s", where)


if __name__ == "__main__":
    main()
