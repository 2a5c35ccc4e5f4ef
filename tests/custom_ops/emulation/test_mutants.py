"""Mistakes planted in the built-in CUDA kernels, and in the headers that they share, are found."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.engine import toolchain

OPS = Path(custom_ops.__path__[0])
SHARED = toolchain.INCLUDE_DIR / "tftoolkit"
RNG = np.random.default_rng(0)


def rms_norm(ops, *shape):
    x, gamma = RNG.standard_normal(shape).astype(np.float32), np.ones(shape[-1], np.float32)
    inverse = np.ones(shape[:-1], np.float32)
    ops.rms_norm(x, gamma)
    ops.rms_norm_grad(x, inverse, x, gamma, inverse)


def layer_norm(ops, *shape):
    x, gamma = RNG.standard_normal(shape).astype(np.float32), np.ones(shape[-1], np.float32)
    row = np.ones(shape[:-1], np.float32)
    ops.layer_norm_grad(x, row, row, x, gamma, row, row)


def softmax_cross_entropy(ops, rows, classes):
    logits, labels = RNG.standard_normal((rows, classes)).astype(np.float32), np.arange(rows, dtype=np.int32)
    row = np.ones(rows, np.float32)
    ops.softmax_cross_entropy(logits, labels)
    ops.softmax_cross_entropy_grad(logits, labels, row, row, row, row)


def rotary_embedding(ops, *shape):
    ops.rotary_embedding(RNG.standard_normal(shape).astype(np.float32))


def swiglu(ops, *shape):
    x = RNG.standard_normal(shape).astype(np.float32)
    ops.swiglu(x, x)


def global_norm(ops, *sizes):
    ops.global_norm([RNG.standard_normal(size).astype(np.float32) for size in sizes])


def adamw(ops, *sizes):
    w, g = ([RNG.standard_normal(size).astype(np.float32) for size in sizes] for _ in range(2))
    zero, each = [np.zeros_like(x) for x in w], [1.0] * len(w)
    options = {"beta_1": 0.9, "beta_2": 0.9, "epsilon": 1.0, "rate_factors": each, "weight_decays": each}
    ops.adam_w(True, 0.1, 1.0, w, zero, zero, g, **options)


def ctc_loss(ops, batch, time, classes):
    logits = RNG.standard_normal((batch, time, classes)).astype(np.float32)
    labels, lengths = np.array([[1, 2, 1]] * batch, np.int32), (np.full(batch, time), np.full(batch, 3))
    row, frames = np.ones(batch, np.float32), np.ones((batch, time), np.float32)
    ops.ctc_loss(logits, labels, *lengths)
    ops.ctc_loss_grad(logits, labels, *lengths, row, frames, frames, frames)


def roi_align(ops, boxes, *shape):
    features, corners = RNG.standard_normal(shape).astype(np.float32), RNG.uniform(0, 3, (boxes, 4)).astype(np.float32)
    dy = np.ones((boxes, 2, 2, shape[-1]), np.float32)
    ops.roi_align_grad(dy, features, corners, np.zeros(boxes, np.int32), sampling_ratio=1)


class Mutant(NamedTuple):
    """``file`` is one of the folder or, as ``shared/…``, one of the kernel authors' headers."""

    call: object  # its name is the folder's
    file: str
    old: str
    new: str
    shape: tuple[int, ...]  # with one block, which comes to several rows
    finding: str


NORM = "shared/norm_cuda.h"
CUDA = "shared/cuda.h"
MUTANTS = {
    "no barrier between frames": Mutant(
        ctc_loss, "gpu_states.h", "    }\n    __syncthreads();\n", "    }\n", (2, 7, 4),
        r"Losses<float>.*(race|nobody has written)",
    ),
    "no barrier before the array is used again": Mutant(
        rms_norm, CUDA, "    __syncthreads();  // the array may still be in use by the previous sum\n", "", (3, 1300),
        r"ForwardRows<float, 256, false>.*race: store to shared array warps",
    ),
    "no barrier between store and load": Mutant(
        rms_norm, CUDA, "    }\n    __syncthreads();\n", "    }\n", (3, 1300),
        r"load from shared array warps \+ \d+ bytes, which nobody has written",
    ),
    "no barrier before the sum over a block's rows": Mutant(
        rms_norm, NORM, "  if (!shared) return;\n  __syncthreads();\n", "  if (!shared) return;\n", (40, 40),
        r"BackwardRows<float, 32, false>.*load from shared array \(dynamic\)",
    ),
    "no barrier before the sum over slabs": Mutant(
        rms_norm, NORM, "= sum;\n  __syncthreads();\n", "= sum;\n", (40, 40),
        r"SumSlabs<float>.*load from shared array sums",
    ),
    "all slabs in one row of partials": Mutant(
        rms_norm, NORM, "  partials += blockIdx.x * columns.size();\n", "", (70, 40),
        r"BackwardRows<float, 32, false>.*race: store to scratch memory",
    ),
    "all warps add to the sums of one": Mutant(
        rms_norm, NORM, "accumulators + threadIdx.x / kGroup * columns.size()", "accumulators", (8, 40),
        r"BackwardRows<float, 32, false>.*race: ",
    ),
    "sums that are not zero at first": Mutant(
        rms_norm, NORM, "mine[j] = 0;", "{}", (8, 40), r"load from shared array \(dynamic\) .*which nobody has written",
    ),
    "neighbours' columns": Mutant(
        layer_norm, NORM, "mine + first / kPack<T>", "mine + first / kPack<T> / 2", (3, 40), r"race: ",
    ),
    "one element too many": Mutant(
        rms_norm, CUDA, "first + j < end ? row[first + j]", "first + j <= end ? row[first + j]", (1, 41),
        "behind its end",
    ),
    "packs of rows that are not aligned": Mutant(
        rms_norm, CUDA, "return d % kPack<T> == 0 && ", "return ", (3, 41), r"misaligned access|behind its end",
    ),
    "an array that is too small": Mutant(
        rms_norm, CUDA, "warps[kCount][kWarps]", "warps[kCount][kWarps - 1]", (3, 1300),
        "shared array warps .*behind its end|load from shared array warps",
    ),
    "a shuffle in some lanes only": Mutant(
        rms_norm, CUDA, "      values[i] += __shfl_xor_sync", "      if (threadIdx.x % 4) values[i] += __shfl_xor_sync",
        (3, 40), "a shuffle, .*waits for",
    ),
    "no barrier between two rows' parts": Mutant(
        softmax_cross_entropy, "softmax_cross_entropy.cu",
        "    __syncthreads();  // the array may still be in use by the previous row\n", "", (3, 1100),
        r"Forward<float, 512>.*race: store to shared array warps",
    ),
    "labels that nobody looks at": Mutant(
        softmax_cross_entropy, "rows.h", "return label >= 0 && label < classes;", "return true;", (9, 8),
        r"logits .*behind its end",
    ),
    "a pack into the next row": Mutant(
        softmax_cross_entropy, CUDA, "if (packed && first >= begin && first + kPack<T> <= end) {",
        "if (packed && first >= begin) {", (3, 41), r"race: store to|behind its end",
    ),
    "heads that there are not": Mutant(
        rotary_embedding, "rotary_embedding.cu", "heads = min(kHeads, shape.heads - head)", "heads = kHeads",
        (1, 2, 9, 8), r"race: |behind its end",
    ),
    "a stride of one thread less": Mutant(
        swiglu, "shared/gate_cuda.h", "int64_t{gridDim.x} * kThreads * kStep;",
        "int64_t{gridDim.x} * (kThreads - 1) * kStep;", (2100,), r"race: store to output y",
    ),
    "no barrier in the sum of chunks": Mutant(
        global_norm, "global_norm.cu", "    __syncthreads();\n    if (threadIdx.x < half)",
        "    if (threadIdx.x < half)", (300,), r"AddUp.*(race|nobody has written)",
    ),
    "all chunks in one place": Mutant(
        global_norm, "global_norm.cu", "sums[chunk] = sum[0]", "sums[0] = sum[0]", (3, 5),
        r"ChunkSquares<float>.*race: store to scratch memory",
    ),
    "a chunk too few": Mutant(
        global_norm, "global_norm.cu", "batch.chunks(); chunk +=", "batch.chunks() - 1; chunk +=", (3, 5),
        r"AddUp.*nobody has written",
    ),
    "a second batch over the first": Mutant(
        global_norm, "global_norm.cu", "batch, sums + done", "batch, sums", (1,) * 170, r"race|nobody has written"
    ),
    "one element of a weight too many": Mutant(
        adamw, "shared/tensor_batch.h", "if (i + j < end) tensor[i + j] =", "tensor[i + j] =", (7,),
        r"Update<.*(behind|race)",
    ),
    "no barrier before the bits of other boxes": Mutant(
        roi_align, "roi_align.cu", "      __syncthreads();  // the bits of the boxes before may still be in use\n", "",
        (260, 1, 4, 4, 3), r"Spread<float>.*race: store to shared array touching",
    ),
    "no barrier behind the bits of boxes": Mutant(
        roi_align, "roi_align.cu", "= bits;\n      __syncthreads();\n", "= bits;\n", (3, 1, 4, 4, 3),
        r"Spread<float>.*touching.*nobody has written",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def load_mutant(tmp_path_factory):
    """Mutant → its library, for float32 alone, which compiles sooner."""
    cache_dir = tmp_path_factory.mktemp("cache")

    def load(name: str):
        mutant = MUTANTS[name]
        source = OPS / mutant.call.__name__ / f"{mutant.call.__name__}.cu"
        folder = tmp_path_factory.mktemp("mutant")
        (folder / "tftoolkit").mkdir()
        texts = {path.name: path.read_text() for path in source.parent.glob("*.h")}
        declared = "".join(path.read_text() for path in source.parent.glob("*.cc"))
        schemas = "\n".join(re.findall(r"TK_OP\(.*?\);\n", declared, re.DOTALL))
        texts[source.name] = source.read_text()
        for path in ("dispatch.h", mutant.file.removeprefix("shared/")):
            if (SHARED / path).exists():
                texts[f"tftoolkit/{path}"] = (SHARED / path).read_text()
        place = f"tftoolkit/{Path(mutant.file).name}" if mutant.file.startswith("shared/") else mutant.file
        assert texts[place].count(mutant.old) >= 1
        texts[place] = texts[place].replace(mutant.old, mutant.new, 1)
        fewer = re.sub(r" *case ffi::(BF16|F16):.*?;\n", "", texts["tftoolkit/dispatch.h"], flags=re.DOTALL)
        texts["tftoolkit/dispatch.h"] = fewer
        library_name = f"mutant_{list(MUTANTS).index(name)}"
        texts[f"{library_name}.cu"] = texts.pop(source.name) + schemas
        for path, text in texts.items():
            (folder / path).write_text(text)
        return custom_ops.load(
            library_name, [folder / f"{library_name}.cu"], cuda="emulated", include_dirs=[folder], cache_dir=cache_dir
        )

    return load


# A barrier of each kind of place and a mask; the others are like these or like planted.cu's.
FIRST = (
    "no barrier before the array is used again", "no barrier before the sum over a block's rows",
    "all slabs in one row of partials", "a pack into the next row", "all chunks in one place",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in FIRST else pytest.mark.exhaustive) for name in MUTANTS],
)
def test_a_mistake_is_found(load_mutant, name):
    mutant = MUTANTS[name]
    opened = load_mutant(name)
    with (
        emulation.settings(max_blocks=2 if "slabs" in name or "chunks" in name else 1),
        pytest.raises(tf.errors.InternalError, match=mutant.finding),
    ):
        mutant.call(opened, *mutant.shape)
