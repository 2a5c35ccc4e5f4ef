"""flash_attention's CUDA kernels in emulation: against float64, bad input, and mistakes that are planted in them."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from attention import assert_as_good_as, float64, fused, given, plain, run

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.engine import library
from tftoolkit.custom_ops.flash_attention.cases import CASES, DTYPES, case

FORWARD = library.load_builtin("flash_attention").op("FlashAttention")
# A block has 64 rows, a tile 16, 32 or 64 keys; kernels are compiled for depths of 64, 128 and 256; from 256 keys on
# they are split. Each of these, grouped heads, all options, and rows that cannot be copied 16 bytes at a time.
FEW = [
    dataclasses.replace(one, dtype=dtype)
    for dtype, one in (
        ("float32", case(1, 70, 70, 4, 2, 8, 5, causal=True)),
        ("float32", case(3, 40, 90, 2, 2, 16, 16, lengths=(0, 50, 90), causal=True)),
        ("float32", case(2, 33, 50, 4, 2, 16, 16, bias=(1, 4, 33), softcap=3.0)),
        ("float32", case(1, 3, 300, 4, 2, 16, 16, window=120)),
        ("float32", case(1, 20, 20, 1, 1, 130, 40)),
        ("bfloat16", case(2, 97, 130, 2, 1, 64, 64, causal=True)),
        ("bfloat16", case(2, 70, 50, 4, 2, 80, 16, bias=(2, 1, 1))),
        ("float16", case(1, 70, 90, 2, 1, 17, 33, window=30, softcap=3.0)),
        ("float16", case(1, 33, 40, 1, 1, 256, 200)),
    )
]
EVERY = [dataclasses.replace(case, dtype=dtype) for dtype in DTYPES for case in CASES]


def check(case, seed: int, max_blocks: int, magnitude: float = 1) -> None:
    inputs, upstream = given(case, magnitude)
    with emulation.emulated(FORWARD), emulation.settings(seed=seed, max_blocks=max_blocks):
        found = run(fused(case), case, inputs, upstream)
    naive, exact = run(plain(case), case, inputs, upstream), float64(case, inputs, upstream)
    if min(case.queries, case.keys) > 1:  # of a single number more roundings may be unlucky
        assert_as_good_as(found, naive, exact, case.dtype)
    for one, right in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, right, rtol=1e-2, atol=0.05 if case.dtype == "bfloat16" else 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("case", FEW, ids=map(str, FEW))
def test_values_and_gradients(case, random_seed):
    check(case, seed=random_seed, max_blocks=3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("max_blocks", [0, 1])
@pytest.mark.parametrize("case", EVERY, ids=map(str, EVERY))
def test_all_values_and_gradients(case, max_blocks, random_seed):
    check(case, seed=random_seed if max_blocks else 0, max_blocks=max_blocks)


@pytest.mark.exhaustive
@pytest.mark.parametrize("magnitude", [1e4, 1e-4])
def test_large_and_tiny_scores(magnitude):
    one = case(1, 100, 150, 2, 2, 64, 64, causal=True)
    inputs, upstream = given(one, magnitude)
    with emulation.emulated(FORWARD):
        found = run(fused(one), one, inputs, upstream)
    assert_as_good_as(found, run(plain(one), one, inputs, upstream), float64(one, inputs, upstream), "float32")


@pytest.mark.slow
def test_sequences_without_padding():
    rng = np.random.default_rng(0)
    rows, keys = [0, 5, 5, 80, 100], [0, 9, 29, 150, 160]
    q, k, v, d_o = (rng.standard_normal(shape).astype(np.float32)
                    for shape in ((100, 4, 16), (160, 2, 16), (160, 2, 24), (100, 4, 24)))  # fmt: skip

    def both() -> list[tf.Tensor]:
        tensors = [tf.constant(x) for x in (q, k, v)]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = custom_ops.flash_attention_varlen(*tensors, rows, keys, causal=True, return_lse=True)
        return [*outputs, *tape.gradient(outputs[0], tensors, output_gradients=d_o)]

    expected = both()
    with emulation.emulated(FORWARD), emulation.settings(max_blocks=2):
        found = both()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=5e-6)


@pytest.mark.slow
def test_without_queries_the_gradients_of_keys_are_zeros():
    none, k = tf.zeros([0, 2, 8]), tf.ones([3, 1, 8])
    with emulation.emulated(FORWARD), tf.GradientTape() as tape:
        tape.watch(k)
        o = custom_ops.flash_attention_varlen(none, k, k, [0], [0])
    assert not tape.gradient(o, k).numpy().any()


@pytest.mark.slow
def test_nan_and_what_stands_behind_the_lengths():
    one = case(2, 30, 64, 2, 1, 16, 16, lengths=(40, 0))
    (q, k, v), upstream = given(one)
    with emulation.emulated(FORWARD):
        clean = run(fused(one), one, [q, k, v], upstream)
        k[0, 40:] = v[0, 40:] = k[1] = v[1] = np.nan
        for found, expected in zip(run(fused(one), one, [q, k, v], upstream), clean, strict=True):
            np.testing.assert_array_equal(found, expected)
        q[0, 3] = np.nan
        o = run(fused(one), one, [q, k, v], upstream)[0]
    assert np.isnan(o[0, 3]).all()
    assert np.isfinite(np.delete(o[0], 3, 0)).all()


X, K = np.zeros([2, 3, 4, 5], np.float32), np.zeros([2, 6, 2, 5], np.float32)
WIDE = np.zeros([1, 2, 1, 257], np.float32)
ATTEND, VARLEN = custom_ops.flash_attention, custom_ops.flash_attention_varlen
WRONG = {
    r"lengths\[1\] is 7, but must be from 0 to the 6 keys": lambda: ATTEND(X, K, K, lengths=[6, 7]),
    "dimension 1 of bias is 3, but must be 1 or 4": lambda: ATTEND(X, K, K, bias=np.zeros([2, 3, 1, 6], np.float32)),
    "cu_seqlens_k must begin with 0 and end with the 6 rows": lambda: VARLEN(X[0], K[0], K[0], [0, 3], [0, 7]),
    "cu_seqlens_q falls at 2": lambda: VARLEN(X[0], K[0], K[0], [0, 3, 2, 3], [0, 1, 2, 6]),
    "on CUDA the depths of q and v must be at most 256, not 257 and 257": lambda: ATTEND(WIDE, WIDE, WIDE),
}


@pytest.mark.slow
@pytest.mark.parametrize("message", WRONG)
def test_bad_input_is_named(message):
    with emulation.emulated(FORWARD), pytest.raises(tf.errors.InvalidArgumentError, match=message):
        WRONG[message]()


# File, what is changed in it, and what is found; "" for wrong values. 70 queries see 300 keys, in two parts; the bias
# is broadcast along the queries.
STAGE = "__syncthreads();  // before the stage is loaded anew"
MUTANTS = {
    "no barrier behind the copies": (
        "gpu_forward.h", "WaitForCopies<1>();\n      __syncthreads();", "WaitForCopies<1>();",
        "kernel gpu::ForwardKernel<.*(race: |nobody has written)",
    ),
    "copies not waited for": (
        "gpu_forward.h", "tftoolkit::WaitForCopies<1>();", "", "kernel gpu::ForwardKernel<.*that was not waited for",
    ),
    "no barrier before a stage is loaded anew": ("gpu_forward.h", STAGE, "", "kernel gpu::ForwardKernel<.*race: "),
    "the same in the backward pass": (
        "gpu_keys.h", f"  Add(call, static_cast<int>(first_key), first_column, stage, dk, dv);\n        {STAGE}",
        "  Add(call, static_cast<int>(first_key), first_column, stage, dk, dv);", "kernel gpu::KeysKernel<.*race: ",
    ),
    "no barrier before warps are summed up": (
        "gpu_backward.h", "    __syncthreads();\n    for (int i = threadIdx.x; i < columns",
        "    for (int i = threadIdx.x; i < columns", "kernel gpu::BiasKernel<.*shared array parts",
    ),
    "lanes not waited for": (
        "gpu_tiles.h", "    __syncwarp();\n    // 32 columns", "    // 32 columns", "kernel gpu::ForwardKernel<",
    ),
    "rows behind the end": ("gpu_tiles.h", "row >= begin && row < end;", "row >= begin;", "kernel .*behind its end"),
    "causal off by one": ("problem.h", "std::min(end, place + 1)", "std::min(end, place + 2)", ""),
    "window off by one": ("problem.h", "place - reach + 1", "place - reach + 2", ""),
    "sums not rescaled": ("gpu_forward.h", "acc[j][2 * i] *= alpha, acc[j][2 * i + 1] *= alpha;", ";", ""),
    "the other part's keys": ("gpu_forward.h", "row.end = min(int64_t{row.end}, seen.end);", "(void)row;", ""),
    "delta with the wrong sign": ("gpu_scores.h", "(*gradient - row.delta)", "(*gradient + row.delta)", ""),
    "delta without the log-sum-exp": ("flash_attention.cu", "sum : sum - dlse[i]", "sum : sum", ""),
    "the wrong head of the keys": ("gpu_forward.h", "p.kv_place(s, kv, key)", "p.kv_place(s, 0, key)", ""),
    "one head of a group": ("gpu_keys.h", "++place.head, place.query = 0", "place.head = p.group()", ""),
    "the first part only": (
        "flash_attention.cu", "i < call.splits; ++i) {\n        value", "i < 1; ++i) {\n        value", "",
    ),
}  # fmt: skip
FOLDER = Path(custom_ops.__path__[0]) / "flash_attention"


@pytest.fixture(scope="module")
def load_mutant(tmp_path_factory):
    """Mutant → its library, for float32 and depths of at most 64 alone, which compiles sooner."""
    folder = tmp_path_factory.mktemp("mutants")
    declared = r"^#define TK_SETTINGS .*?$|^TK_OP\(.*?\);$"
    schemas = re.findall(declared, (FOLDER / "flash_attention.cc").read_text(), re.MULTILINE | re.DOTALL)

    def load(mutant: str):
        changed, old, new, _ = MUTANTS[mutant]
        target = folder / f"mutant_{list(MUTANTS).index(mutant)}"
        target.mkdir()
        for path in (*FOLDER.glob("*.h"), FOLDER / "flash_attention.cu", FOLDER / "flash_attention_f32.cu"):
            text = path.read_text()
            if path.name == changed:
                assert text.count(old) == 1
                text = text.replace(old, new)
            if path.name == "flash_attention.cu":
                text = re.sub(r" *case Type::k(BFloat16|Half):\n.*?;\n", "", text)
                text += "\n".join(schemas)
            if path.name == "gpu.h":
                text = re.sub(r" *if \(depth <= 64\) (return .*;\n)(.*\n){2}", r"  \1", text)
            (target / path.name).write_text(text)
        sources = [target / "flash_attention.cu", target / "flash_attention_f32.cu"]
        return custom_ops.load(target.name, sources, cuda="emulated", cache_dir=folder)

    return load


@pytest.mark.exhaustive
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found(load_mutant, mutant):
    text = MUTANTS[mutant][-1]
    one = case(1, 70, 300, 4, 2, 16, 16, bias=(1, 4, 1))
    (q, k, v, bias), (d_o, dlse) = given(one)
    settings = {"scale": 0.25, "causal": True, "window": 200}
    true, mutated = library.load_builtin("flash_attention"), load_mutant(mutant)

    def call(opened):
        found = opened.flash_attention(q, k, v, bias, None, has_lse=True, **settings)
        back = opened.flash_attention_grad(
            q, k, v, bias, None, *expected[:3], d_o, dlse, biased=True, has_dbias=True, **settings
        )
        return [*found, *back]

    expected = true.op("FlashAttention")(q, k, v, bias, None, has_lse=True, **settings)
    if text:
        with pytest.raises(tf.errors.InternalError, match=text):
            call(mutated)
        return
    expected = [*expected, *true.op("FlashAttentionGrad")(
        q, k, v, bias, None, *expected[:3], d_o, dlse, biased=True, has_dbias=True, **settings
    )]  # fmt: skip
    wrong = [np.abs(one - other).max() > 1e-4 for one, other in zip(call(mutated), expected, strict=True)]
    assert any(wrong)
