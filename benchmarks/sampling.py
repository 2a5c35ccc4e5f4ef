"""grid_sample beside PyTorch's, transforms beside TensorFlow's own op, filters beside scipy.ndimage.

    python benchmarks/sampling.py [--rounds 9] [--size 512] [--torch /path/to/python]

The alternatives run in turn, PyTorch in a process of its own, so that a busy machine slows all alike. Images are
square, channels last; PyTorch's have channels first, as it wants them. A grid turns each image by 20 degrees, so that
neighbours stay neighbours; *scattered* has each point anywhere. *gradients* is forward and backward, by images and
grid.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import results
import scipy.ndimage
import tensorflow as tf
from other_process import OtherProcess
from sampling_torch import WORK, arrays

from tftoolkit import custom_ops

Timed = Callable[[], float]


def timed(function: Callable[..., Any], *inputs: Any) -> Timed:
    def run() -> float:
        start = time.perf_counter()
        found = tf.nest.flatten(function(*inputs))[0]
        if isinstance(found, tf.Tensor):
            found[(0,) * found.shape.rank].numpy()  # waits
        return time.perf_counter() - start

    return run


def sampling(name: str, size: int, torch: OtherProcess | None) -> dict[str, Timed]:
    work = WORK[name]
    images, grid, dy = map(tf.constant, arrays(name, size))
    options = {"mode": work.mode, "padding": work.padding}

    @tf.function(autograph=False)
    def forward(images: tf.Tensor, grid: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return custom_ops.grid_sample(images, grid, **options)

    @tf.function(autograph=False)
    def gradients(images: tf.Tensor, grid: tf.Tensor, dy: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([images, grid])
            y = custom_ops.grid_sample(images, grid, **options)
        return tape.gradient(y, [images, grid], output_gradients=dy)

    found = {"ours": timed(gradients if work.gradients else forward, images, grid, dy)}
    if torch:
        found["PyTorch"] = lambda: torch.run(name, size)
    return found


def transforms(size: int) -> dict[str, dict[str, Timed]]:
    images = tf.random.normal([8, size, size, 3])
    numbers = tf.constant([[0.94, -0.34, 90.0, 0.34, 0.94, -70.0, 0.0, 0.0]])
    theirs = {
        "images": images, "transforms": numbers, "output_shape": [size, size], "fill_value": 0.0,
        "interpolation": "BILINEAR", "fill_mode": "CONSTANT",
    }  # fmt: skip
    ours = tf.function(lambda: custom_ops.image_transform(images, numbers, "bilinear"), autograph=False)
    own = tf.function(lambda: tf.raw_ops.ImageProjectiveTransformV3(**theirs), autograph=False)
    return {f"image_transform 8x{size}x{size}x3": {"ours": timed(ours), "TensorFlow's op": timed(own)}}


def filters(size: int) -> dict[str, dict[str, Timed]]:
    rng = np.random.default_rng(0)
    smooth = scipy.ndimage.gaussian_filter(rng.standard_normal((2 * size, 2 * size)), 4)
    blobs, noise = (smooth > 0).astype(np.uint8), rng.integers(0, 2, smooth.shape).astype(np.uint8)
    picture = rng.integers(0, 255, (size, size)).astype(np.uint8)
    found = {}
    for name, image in (("blobs", blobs), ("noise", noise)):
        found[f"connected_components, {name}"] = {
            "ours": timed(custom_ops.connected_components, tf.constant(image)),
            "scipy": timed(scipy.ndimage.label, image),
        }
        found[f"euclidean_distance_transform, {name}"] = {
            "ours": timed(custom_ops.euclidean_distance_transform, tf.constant(image)),
            "scipy": timed(scipy.ndimage.distance_transform_edt, image),
        }
    for window in (3, 5, 11):
        for dtype in ("uint8", "float32"):
            image = picture.astype(dtype)
            found[f"median_filter2d, {window}x{window}, {dtype}"] = {
                "ours": timed(custom_ops.median_filter2d, tf.constant(image), window),
                "scipy": timed(
                    lambda image, window: scipy.ndimage.median_filter(image, window, mode="mirror"), image, window
                ),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--size", type=int, default=512, help="of the images; filters take twice that, volumes an eighth"
    )
    parser.add_argument("--torch", help="an interpreter that has PyTorch")
    options = parser.parse_args()
    where = results.machine()
    torch = OtherProcess(options.torch, "sampling_torch.py") if options.torch else None
    work = (
        {name: sampling(name, options.size, torch) for name in WORK} | transforms(options.size) | filters(options.size)
    )
    times: dict[tuple[str, str], list[float]] = {}
    for name, candidates in work.items():
        for run in candidates.values():
            run(), run()
        found: dict[str, list[float]] = {candidate: [] for candidate in candidates}
        for _ in range(options.rounds):
            for candidate, run in candidates.items():
                found[candidate].append(1e3 * run())
        times |= {(candidate, name): values for candidate, values in found.items()}
        show(name, found)
    versions = {"torch": torch.version} if torch else {}
    results.save("sampling", times, "ms", where, scipy=scipy.__version__, **versions)


def show(name: str, times: dict[str, list[float]]) -> None:
    for candidate, values in times.items():
        ratios = [other / ours for other, ours in zip(values, times["ours"], strict=True)]
        spread = f"{statistics.median(ratios):6.2f} ({min(ratios):.2f}–{max(ratios):.2f}) of ours"
        print(f"{name:44s} {candidate:16s} {statistics.median(values):9.2f} ms, {spread}", flush=True)


if __name__ == "__main__":
    main()
