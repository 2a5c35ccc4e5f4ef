"""Memory of large outputs is used again, by nobody else meanwhile, and no more of it is kept than was once in use."""

import concurrent.futures
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops

ROWS, WIDTH = 2048, 1024  # 8 MB


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.fixture(scope="module")
def inputs() -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    gate, up = (tf.constant(rng.standard_normal([ROWS, WIDTH], np.float32)) for _ in range(2))
    return gate, up


def test_steps_touch_no_fresh_pages(inputs):
    gate, up = (tf.tile(one, [4, 1]) for one in inputs)
    step = tf.function(lambda gate, up: tf.reduce_max(custom_ops.swiglu(custom_ops.swiglu(gate, up), up)))
    for _ in range(3):
        step(gate, up)
    before = faults()
    for _ in range(10):
        step(gate, up)
    assert faults() - before < 100  # of 2 x 8,192 pages a step, or 2 x 16 where pages are huge


def test_outputs_that_live_are_not_used_again(inputs):
    gate, up = inputs
    scales = [float(scale) for scale in range(1, 9)]
    kept = [custom_ops.swiglu(gate, up * scale) for scale in scales]
    del kept[::2]
    kept += [custom_ops.swiglu(gate, up * -scale) for scale in scales]
    expected = tf.nn.silu(gate) * up
    for output, scale in zip(kept, [*scales[1::2], *(-scale for scale in scales)], strict=True):
        np.testing.assert_allclose(output, expected * scale, rtol=1e-5, atol=1e-6)


def test_many_threads(inputs):
    gate, up = inputs
    expected = custom_ops.swiglu(gate, up).numpy()

    def many(rows: int) -> bool:
        return all(np.array_equal(custom_ops.swiglu(gate[:rows], up[:rows]), expected[:rows]) for _ in range(5))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(many, [ROWS - 64 * number for number in range(8)] * 2))


@pytest.mark.slow
def test_sizes_that_change_do_not_pile_up():
    """One output at a time, of ever new sizes up to 64 MB: their sum would be 2 GB."""
    program = """
        import re
        import tensorflow as tf
        from tftoolkit import custom_ops

        def resident():
            return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

        x = tf.ones([16 << 20])
        custom_ops.swiglu(x, x)
        before = resident()
        for number in range(60):
            part = x[: (16 << 20) - (number * 7919 * 53) % (15 << 20)]
            custom_ops.swiglu(part, part)
        print(resident() - before)
    """
    run = [sys.executable, "-c", textwrap.dedent(program)]
    grown = subprocess.run(run, check=True, text=True, stdout=subprocess.PIPE).stdout
    assert float(grown) < 200  # MB: the last part, an output, and what allocators keep of those before
