"""The ops of detectors against TensorFlow's operations and torchvision; with gradients where there are any.

    python benchmarks/detection.py [--rounds 9] [--names "roi_align;…"] [--divisor 1] [--torch /path/to/python]
                                   [--no-save]

The alternatives run in turn, torchvision in a process of its own, so that a busy machine slows all alike. What one
writes in TensorFlow: ``non_max_suppression`` (which knows no classes), ``crop_and_resize`` and the mean of 2 x 2, and
deformable convolution of gathers and a product. There is nothing for ``roi_pool``, and in torchvision none for
``soft_nms``. ``--divisor`` makes pictures and boxes fewer, to try the script.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import results
import tensorflow as tf
from detection_work import BINS, CONVOLUTIONS, NAMES, NMS, RATIO, ROIS, SCALE, THRESHOLD, inputs
from other_process import OtherProcess

from tftoolkit import custom_ops
from tftoolkit.custom_ops.deform_conv2d import plain

Given = dict[str, tf.Tensor]
STEPS = {"stride_y": 1, "stride_x": 1, "padding_y": 1, "padding_x": 1, "dilation_y": 1, "dilation_x": 1}
SOFT = {"method": "gaussian", "sigma": 0.5, "score_threshold": 0.01}


def ours(name: str, given: Given) -> tf.Tensor:
    if name == "soft_nms":
        return custom_ops.soft_nms(given["boxes"], given["scores"], max_output=given["boxes"].shape[0], **SOFT).indices
    if name in NMS:
        options = {"iou_threshold": THRESHOLD, "max_output": given["boxes"].shape[0]}
        return custom_ops.batched_nms(given["boxes"], given["scores"], given["classes"], **options).indices
    if name == "roi_align":
        options = {"spatial_scale": SCALE, "sampling_ratio": RATIO}
        return custom_ops.roi_align(given["features"], given["boxes"], given["indices"], BINS, **options)
    if name == "roi_pool":
        return custom_ops.roi_pool(given["features"], given["boxes"], given["indices"], BINS, spatial_scale=SCALE)
    x, offset, weight, bias, mask = (given[key] for key in ("x", "offset", "weight", "bias", "mask"))
    return custom_ops.deform_conv2d(x, offset, weight, bias, mask=mask, padding=1)


def tensorflow(name: str, given: Given) -> tf.Tensor:
    if name == "soft_nms":
        return tf.image.non_max_suppression_with_scores(
            given["boxes"], given["scores"], given["boxes"].shape[0], 1.0, SOFT["score_threshold"], SOFT["sigma"] / 2
        )[0]
    if name in NMS:
        return tf.image.non_max_suppression(given["boxes"], given["scores"], given["boxes"].shape[0], THRESHOLD)
    if name == "roi_align":
        height, width = given["features"].shape[1:3]
        x1, y1, x2, y2 = tf.unstack(given["boxes"] * SCALE - 0.5, axis=1)
        half_y, half_x = ((y2 - y1) / (2 * RATIO * BINS), (x2 - x1) / (2 * RATIO * BINS))
        corners = tf.stack(
            [
                (y1 + half_y) / (height - 1),
                (x1 + half_x) / (width - 1),
                (y2 - half_y) / (height - 1),
                (x2 - half_x) / (width - 1),
            ],
            1,
        )
        indices = tf.cast(given["indices"], tf.int32)
        samples = tf.image.crop_and_resize(given["features"], corners, indices, [RATIO * BINS] * 2)
        return tf.nn.avg_pool2d(samples, RATIO, RATIO, "VALID")
    x, offset, weight, bias, mask = (given[key] for key in ("x", "offset", "weight", "bias", "mask"))
    return plain.forward(x, offset, weight, bias, mask, **STEPS)


def timed(function: Callable[[str, Given], tf.Tensor], name: str, given: Given) -> Callable[[], float]:
    """Seconds of a call, with gradients where there are any."""
    wanted = [key for key in ("features", "x", "offset", "weight", "bias", "mask") if key in given]

    @tf.function(autograph=False)
    def call(given: Given) -> Any:
        if not wanted:
            return [function(name, given)]
        with tf.GradientTape() as tape:
            tape.watch([given[key] for key in wanted])
            y = function(name, given)
        return tape.gradient(y, [given[key] for key in wanted], output_gradients=given["upstream"])

    def run() -> float:
        start = time.perf_counter()
        tf.reshape(call(given)[0], [-1])[0].numpy()  # waits
        return time.perf_counter() - start

    return run


def measure(name: str, divisor: int, rounds: int, torch: OtherProcess | None) -> dict[str, list[float]]:
    given = {key: tf.constant(array) for key, array in inputs(name, divisor).items()}
    candidates = {"ours": timed(ours, name, given)}
    if name != "roi_pool":
        candidates["TensorFlow, graph"] = timed(tensorflow, name, given)
    if torch and name != "soft_nms":
        candidates["torchvision"] = lambda: torch.run(divisor, name)
    for run in candidates.values():
        run(), run()
    found: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate, run in candidates.items():
            found[candidate].append(1e3 * run())
    return found


def described(name: str) -> str:
    sizes = {**NMS, **ROIS, **CONVOLUTIONS}[name]
    return f"{name} ({'x'.join(map(str, sizes))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--names", help="some of the work, with semicolons between")
    parser.add_argument("--divisor", type=int, default=1)
    parser.add_argument("--torch", help="an interpreter that has torchvision")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    where = results.machine()
    torch = OtherProcess(options.torch, "detection_torch.py") if options.torch else None
    times: dict[tuple[str, str], list[float]] = {}
    for name in options.names.split(";") if options.names else NAMES:
        found = measure(name, options.divisor, options.rounds, torch)
        for candidate, values in found.items():
            times[candidate, described(name)] = values
            ratios = [other / own for other, own in zip(values, found["ours"], strict=True)]
            text = f"{statistics.median(values):9.2f} ms, {statistics.median(ratios):5.2f} of ours"
            print(f"{described(name):40s} {candidate:20s} {text} ({min(ratios):.2f}–{max(ratios):.2f})", flush=True)
    if not options.no_save and options.divisor == 1:
        results.save("detection", times, "ms", where, **({"torchvision": torch.version} if torch else {}))


if __name__ == "__main__":
    main()
