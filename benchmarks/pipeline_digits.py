"""Examples per second of our pipeline on the digits, against plain tf.data doing the same work.

    python benchmarks/pipeline_digits.py [--runs 7] [--batch-size 64]

Both shuffle the whole training split, shift each image by at most one pixel, scale it to [0, 1] and batch. They run in
turns, so that a busy machine slows all of them alike; the ratio is taken within each turn, and median and range over
the turns are printed and written to benchmarks/results.csv. ``tf.data`` is from_tensor_slices, shuffle(all), map,
batch, prefetch, with stateful shuffling and a random op per example, as tutorials write it; it cannot be resumed in the
middle of an epoch.

``ours`` is ``for batch in pipeline`` in Python, "as a data set" ``for batch in pipeline.dataset()``, and "in a graph" a
loop over a data set within one tf.function. "tf.data, one batch again and again" does no work: what it costs to hand a
batch from a data set over to Python.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
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


def candidates(batch_size: int) -> dict[str, Callable[[], int]]:
    """Each call takes some batches and returns how many examples they hold."""
    source = pipelines.sources.tfds("digits", "train")
    shuffled = pipelines.Pipeline(source).shuffle()
    plain_ours = shuffled.batch(batch_size)
    built_in = shuffled.map(pipelines.image.random_shift(1)).map(pipelines.image.normalize(16)).batch(batch_size)
    arrays = source.fetch(tf.range(len(source), dtype=tf.int64))
    plain = tf.data.Dataset.from_tensor_slices(arrays).shuffle(len(source)).repeat()
    one = tf.data.Dataset.from_tensors({name: array[:batch_size] for name, array in arrays.items()}).repeat()

    def finish(mapped: tf.data.Dataset) -> tf.data.Dataset:
        return mapped.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    return {
        "ours, random_shift + normalize": in_python(built_in),
        "ours, a function of one's own": in_python(shuffled.map(own_function).batch(batch_size)),
        "ours, no map": in_python(plain_ours),
        "ours, no map, as a data set": in_python(plain_ours.dataset()),
        "ours, no map, in a graph": in_a_graph(plain_ours.dataset()),
        "tf.data, parallel map": in_python(finish(plain.map(plain_function, num_parallel_calls=tf.data.AUTOTUNE))),
        "tf.data, map": in_python(finish(plain.map(plain_function))),
        "tf.data, no map": in_python(finish(plain)),
        "tf.data, no map, in a graph": in_a_graph(finish(plain)),
        "tf.data, one batch again and again": in_python(one.prefetch(tf.data.AUTOTUNE)),
    }


def in_python(batches: Iterable[Example]) -> Callable[[], int]:
    iterator = iter(batches)
    return lambda: next(iterator)["image"].shape[0]


def in_a_graph(dataset: tf.data.Dataset) -> Callable[[], int]:
    iterator = iter(dataset)

    @tf.function(autograph=False)
    def some() -> tf.Tensor:
        def one(i: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, count + tf.shape(next(iterator)["image"])[0]

        return tf.while_loop(lambda i, _: i < 1000, one, (tf.constant(0), tf.constant(0)))[1]

    return lambda: int(some())


def examples_per_second(take: Callable[[], int], seconds: float) -> float:
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += take()
    return count / elapsed


def _rival(name: str) -> str:
    if name.endswith("in a graph"):
        return "tf.data, no map, in a graph"
    return "tf.data, no map" if "no map" in name else "tf.data, parallel map"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="turns")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each candidate in each turn")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    where = results.machine()

    speeds: dict[str, list[float]] = {}
    for turn in range(options.runs + 1):
        for name, take in candidates(options.batch_size).items():
            examples_per_second(take, 0.3)  # warm-up: tf.data tunes itself
            speed = examples_per_second(take, options.seconds)
            if turn:  # the first turn warms up the process
                speeds.setdefault(name, []).append(speed)
    print(f"{'':36s} {'examples/s: median':>20s} {'range':>20s}   {'ratio to tf.data doing the same':>32s}")
    for name, values in speeds.items():
        reference = speeds[_rival(name)]
        ratios = [value / other for value, other in zip(values, reference, strict=True)]
        spread = f"{min(values):,.0f} … {max(values):,.0f}"
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        print(f"{name:36s} {statistics.median(values):20,.0f} {spread:>20s}   {ratio:>32s}")
    figures = {(name, f"batch {options.batch_size}"): values for name, values in speeds.items()}
    results.save("pipeline_digits", figures, "examples/s", where)


if __name__ == "__main__":
    main()
