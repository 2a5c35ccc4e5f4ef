"""CUDA kernels on the CPU, without a GPU, each load and store checked.

    scale = custom_ops.load("Mine", ["scale.cc", "scale.cu"], cuda="emulated").scale
    custom_ops.opcheck(custom_ops.rms_norm, x, gamma, device="emulated")

A call of such an op runs the kernels of its .cu file thread by thread, and raises ``tf.errors.InternalError`` for the
first thing that is wrong: a race, an access outside of a buffer or a shared array, memory that nobody wrote, a barrier
or a collective of a warp that not all threads come to. The text names kernel, block, thread and the lines. What this
can't see stands in docs/cuda_without_gpu.md.
"""

from __future__ import annotations

from tftoolkit.custom_ops.emulation.building import library_recipe
from tftoolkit.custom_ops.emulation.run_settings import settings
from tftoolkit.custom_ops.emulation.twins import emulated, has_kernel, is_emulated, twin

__all__ = ["emulated", "has_kernel", "is_emulated", "library_recipe", "settings", "twin"]
