"""How much memory running steps took."""

import resource

import tensorflow as tf


def peak_memory() -> int:
    """The most bytes that TensorFlow used of the GPU's memory; without a GPU, this process of the main memory."""
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
