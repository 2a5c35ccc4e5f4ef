"""What a function of one example costs: a loop over the rows of a batch, as in ``Pipeline.map``, or a data set inside.

    python benchmarks/map_rows.py [--rounds 7]

The function pads, draws an offset and crops an 8x8 picture; batches of 64. The alternatives run in turn.
"""

import argparse
import time
from typing import Any

import results
import tensorflow as tf

from tftoolkit.pipelines.sources.rows import map_rows

ROWS, BATCHES = 64, 300
BEFORE = {"image": tf.TensorSpec([8, 8, 1], tf.uint8), "label": tf.TensorSpec([], tf.int64)}
AFTER = {"image": tf.TensorSpec([8, 8, 1], tf.float32), "label": tf.TensorSpec([], tf.int64)}
BATCH = {name: tf.zeros([ROWS, *spec.shape], spec.dtype) for name, spec in BEFORE.items()}
KEYS = tf.zeros([ROWS, 2], tf.int32)


def crop(example: dict[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
    begin = tf.random.stateless_uniform([2], key, 0, 3, tf.int32)
    padded = tf.pad(tf.cast(example["image"], tf.float32) / 16, [[1, 1], [1, 1], [0, 0]])
    return {"image": tf.slice(padded, [begin[0], begin[1], 0], [8, 8, 1]), "label": example["label"]}


def nested(calls: int) -> Any:
    rows = tf.data.Dataset.from_tensor_slices((BATCH, KEYS)).map(crop, num_parallel_calls=calls)
    return rows.batch(ROWS, drop_remainder=True).get_single_element()


ALTERNATIVES = {
    "map_fn": lambda _: map_rows(crop, BATCH, KEYS, BEFORE, AFTER),
    "nested data set": lambda _: nested(1),
    "nested data set, 2 calls": lambda _: nested(2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    where = results.machine()
    figures: dict[tuple[str, str], list[float]] = {(name, "per example"): [] for name in ALTERNATIVES}
    iterators = {
        name: iter(tf.data.Dataset.counter().map(function, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2))
        for name, function in ALTERNATIVES.items()
    }
    for turn in range(parser.parse_args().rounds + 1):
        for name, batches in iterators.items():
            begin = time.perf_counter()
            for _ in range(BATCHES):
                next(batches)
            if turn:  # the first one warms up
                figures[name, "per example"].append((time.perf_counter() - begin) / BATCHES / ROWS * 1e6)
    results.save("map_rows", figures, "µs", where)
    print(results.table("map_rows"))


if __name__ == "__main__":
    main()
