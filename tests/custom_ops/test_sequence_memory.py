"""What sequence losses need of memory, forward and backward, beside their inputs: the bounds that the docs state."""

import subprocess
import sys

import pytest

MB = 1 << 20
# Of a call of ``run``, behind a small one: by how many bytes the peak of the process exceeds what it has with the
# inputs in place. Results and gradients are counted.
PROGRAM = """
import ctypes, sys
from pathlib import Path
import tensorflow as tf
from tftoolkit import custom_ops

def resident(what):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])

def run(shapes, count, frames, call):
    tensors = [tf.random.normal(shape) for shape in shapes]
    batch = shapes[0][0]
    labels = 1 + tf.range(batch * count) % (shapes[0][-1] - 1)
    lengths = tf.reshape(labels, [batch, count]), tf.fill([batch], frames), tf.fill([batch], count)
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = call(*tensors, *lengths)
    gradients = tape.gradient(loss, tensors)
    return resident("VmHWM") - before

call, sizes = getattr(custom_ops, sys.argv[1]), [int(size) for size in sys.argv[2:]]
for batch, time, count, classes in ([1, 4, 2, 5], sizes):
    shapes = {
        "ctc_loss": [[batch, time, classes]],
        "rnnt_loss": [[batch, time, count + 1, classes]],
        "rnnt_loss_additive": [[batch, time, classes], [batch, count + 1, classes]],
    }[sys.argv[1]]
    growth = run(shapes, count, time, call)
print(growth)
"""


def growth(*arguments: object) -> int:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


@pytest.mark.slow
def test_ctc_loss_has_nothing_of_the_size_of_its_logits_beside_the_gradient() -> None:
    batch, time, labels, classes = 8, 500, 40, 5000
    gradient = 4 * batch * time * classes
    states = 16 * batch * time * (2 * labels + 1)  # a pair of floats each, both ways
    assert growth("ctc_loss", batch, time, labels, classes) < gradient + states + 8 * MB < 1.5 * gradient


@pytest.mark.slow
def test_rnnt_loss_has_one_joint_tensor_beside_its_input() -> None:
    batch, time, labels, classes = 2, 60, 40, 4000
    gradient = 4 * batch * time * (labels + 1) * classes
    assert growth("rnnt_loss", batch, time, labels, classes) < gradient + 8 * MB < 1.5 * gradient


@pytest.mark.slow
def test_rnnt_loss_additive_never_forms_the_joint_tensor() -> None:
    batch, time, labels, classes = 1, 400, 300, 2000
    cells, rows = 4 * batch * time * (labels + 1), 4 * batch * (time + labels + 1) * classes
    joint = cells * classes
    assert growth("rnnt_loss_additive", batch, time, labels, classes) < 4 * (cells + rows) + 8 * MB < joint / 16
