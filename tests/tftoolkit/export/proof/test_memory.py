"""The peak memory in a report is what the file needs, measured in a process of its own."""

import os

import pytest
import tensorflow as tf

from tftoolkit import export


@pytest.fixture(autouse=True)
def peak_memory():
    """Is measured, unlike in the other tests of exports."""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("exporter", "file"),
    [(export.tflite, "m.tflite"), pytest.param(export.onnx, "m.onnx", marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_peak_memory_is_that_of_the_file(tmp_path, exporter, file):
    """A few megabytes for a small model; with an intermediate result of 16 MiB that and a few more."""
    spec, size = tf.TensorSpec([1, 2048], tf.float32, "x"), 4 * 2048**2

    def small(x):
        return {"y": tf.reduce_sum(tf.sin(x), 1)}

    def large(x):
        return {"y": tf.reduce_sum(tf.sin(tf.matmul(x, x, transpose_a=True)), 1)}

    found = {}
    for function in (small, large):
        signatures = {"f": (function, [spec])}
        found[function] = exporter(tf.Module(), tmp_path / file, signatures=signatures, overwrite=True).rows[0].memory
    assert 1e5 < found[small] < size
    assert size < found[large] < 8 * size  # onnxruntime takes memory in powers of two


def test_memory_of_a_saved_model_is_not_measured(tmp_path):
    signatures = {"f": (lambda x: {"y": 2.0 * x}, [tf.TensorSpec([2], tf.float32, "x")])}
    assert export.saved_model(tf.Module(), tmp_path / "m", signatures=signatures).rows[0].memory is None
