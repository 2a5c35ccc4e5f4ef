"""The CUDA kernels in emulation: against float64, ignored tokens, bad input, and mistakes that are planted in them."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from cross_entropy import FORWARD, assert_as_good_as, float64, fused, given, plain, run

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.engine import library, toolchain
from tftoolkit.custom_ops.fused_linear_cross_entropy.cases import ARGUMENTS, CASES, DTYPES, EMPTY_CASES, call_of, case

# A chunk has 1024 tokens (in float32 256), a tile 128 of them and 128 classes: one, several, and rows that cannot be
# copied 16 bytes at a time.
FEW = [
    dataclasses.replace(one, dtype=dtype)
    for dtype, one in (
        ("float32", case(70, depth=17, classes=200, bias=True, logit_softcap=3.0)),
        ("float32", case(1500, depth=8, classes=193, class_weight=True, label_smoothing=0.1, z_loss=1e-2)),
        ("bfloat16", case(1500, depth=40, classes=140, bias=True, class_weight=True, label_smoothing=0.1)),
        ("float16", case(150, depth=19, classes=300, bias=True, z_loss=1e-2, logit_softcap=5.0)),
    )
]
EVERY = [dataclasses.replace(case, dtype=dtype) for dtype in DTYPES for case in (*CASES, *EMPTY_CASES)]


def check(case, seed: int, max_blocks: int, magnitude: float = 1) -> None:
    tensors, labels, class_weight = given(case, magnitude)
    rng = np.random.default_rng(1)
    upstream = [rng.standard_normal(case.rows).astype(np.float32) for _ in range(2)]
    exact = float64(case, tensors, labels, class_weight, *upstream)
    with emulation.emulated(FORWARD), emulation.settings(seed=seed, max_blocks=max_blocks):
        of = fused(case, labels, class_weight, reduction="none", return_lse=True)
        found = run(of, case, tensors, upstream)
    naive = run(plain(case, labels, class_weight), case, tensors, upstream)
    assert_as_good_as(found, naive, exact, case.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case", FEW, ids=map(str, FEW))
def test_losses_and_gradients(case, random_seed):
    check(case, seed=random_seed, max_blocks=3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("max_blocks", [0, 1])
@pytest.mark.parametrize("case", EVERY, ids=map(str, EVERY))
def test_all_losses_and_gradients(case, max_blocks, random_seed):
    check(case, seed=random_seed if max_blocks else 0, max_blocks=max_blocks)


@pytest.mark.exhaustive
@pytest.mark.parametrize("magnitude", [1e4, 1e-4])
def test_logits_of_any_size(magnitude):
    check(CASES[2], seed=0, max_blocks=0, magnitude=magnitude)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mean_and_its_gradients_have_the_same_bits_whatever_the_order(dtype):
    one = dataclasses.replace(case(1500, depth=8, classes=140, bias=True, class_weight=True), dtype=dtype)
    tensors, labels, class_weight = given(one)
    share = 1 / class_weight.astype(np.float64)[labels[labels >= 0]].sum()
    loss, _, *gradients = float64(one, tensors, labels, class_weight, share)
    found = []
    for seed, max_blocks in (0, 0), (1, 2):
        with emulation.emulated(FORWARD), emulation.settings(seed=seed, max_blocks=max_blocks):
            found.append(run(fused(one, labels, class_weight), one, tensors, [np.float32(1)]))
    np.testing.assert_allclose(found[0][0], loss.sum() * share, rtol=1e-6)
    for actual, again, right in zip(found[0][1:], found[1][1:], gradients, strict=True):
        np.testing.assert_array_equal(actual, again)
        limit = (2.0**-7 if dtype == "bfloat16" else 1e-6) * np.abs(right).max()
        np.testing.assert_allclose(actual, right, atol=limit, rtol=0)


@pytest.mark.slow
def test_small_gradients_in_float16():
    """Those by the logits, 1e-7 and less here, are scaled: float16 has steps of 6e-8."""
    one = dataclasses.replace(case(300, depth=16, classes=200), dtype="float16")
    tensors, labels, _ = given(one)
    direct = emulation.twin(library.load_builtin("fused_linear_cross_entropy").op("FusedLinearCrossEntropyGrad"))
    inputs, weight = (tf.cast(x, "float16") for x in tensors)
    d_loss = tf.fill([300], 1e-5)
    found = direct(inputs, weight, weight[:0, 0], labels, None, d_loss, 0 * d_loss, biased=False, has_dbias=False)
    exact = float64(one, tensors, labels, None, np.float32(1e-5))[3]
    error = np.abs(tf.cast(found.dweight, tf.float64) - exact)
    assert error.max() <= 2.0**-9 * np.abs(exact).max() + 2.0**-25  # steps of float16's smallest numbers: 2^-24


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_most_or_all_tokens_ignored(dtype):
    """Those that do not count may hold anything; what is not finite spoils its own token and the weight."""
    rng = np.random.default_rng(0)
    for counting in ([], [3, 599]):
        inputs, labels = np.full((600, 16), np.nan, np.float32), np.full(600, -100, np.int32)
        for row in counting:
            inputs[row], labels[row] = rng.standard_normal(16), row % 9
        one = dataclasses.replace(case(600, depth=16, classes=9, bias=True), dtype=dtype)
        tensors = [inputs, rng.standard_normal((9, 16)).astype(np.float32), np.ones(9, np.float32)]
        expected = run(fused(one, labels, None), one, tensors, [np.float32(1)])
        with emulation.emulated(FORWARD):
            found = run(fused(one, labels, None), one, tensors, [np.float32(1)])
        for actual, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(actual, right, rtol=1e-5 if dtype == "float32" else 2e-2, atol=1e-3)
        assert not np.delete(found[1], counting, 0).any()
    inputs[3, 5] = np.inf
    expected = run(fused(one, labels, None), one, tensors, [np.float32(1)])
    with emulation.emulated(FORWARD):
        found = run(fused(one, labels, None), one, tensors, [np.float32(1)])
    for actual, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(right))
        np.testing.assert_array_equal(np.isinf(actual), np.isinf(right))
    assert np.isnan(found[1][3]).all()
    assert np.isfinite(found[1][599]).all()


@pytest.mark.slow
def test_classes_taken_out_by_the_bias():
    inputs, weight, bias = (
        np.zeros((4, 2), np.float32),
        np.ones((400, 2), np.float32),
        np.full(400, -np.inf, np.float32),
    )
    bias[[5, 399]] = -1000.0
    with emulation.emulated(FORWARD):
        loss, lse = custom_ops.fused_linear_cross_entropy(
            [5, 399, 0, -100], inputs, weight, bias, reduction="none", return_lse=True
        )
        found = run(fused(CASES[0], [5, 399, 5, 5], None), CASES[0], [inputs, weight, bias], [np.float32(1)])
    np.testing.assert_allclose(loss, [np.log(2), np.log(2), np.inf, 0], rtol=1e-6)
    np.testing.assert_allclose(lse[:3], np.log(2) - 1000, rtol=1e-6)
    assert all(np.isfinite(one).all() for one in found)


@pytest.mark.slow
def test_bad_input_is_named():
    (inputs, weight), labels, _ = given(CASES[0])
    labels[1, 0], labels[1, 2] = 11, -1
    message = r"labels holds 11 \(element 3\), but must hold classes, from 0 to below 11, the first dimension of weight"
    for options in {"reduction": "none"}, {}:
        with emulation.emulated(FORWARD), pytest.raises(tf.errors.InvalidArgumentError, match=message):
            run(fused(CASES[0], labels, None, **options), CASES[0], [inputs, weight], [np.ones([], np.float32)])
    with (
        emulation.emulated(FORWARD),
        tf.GradientTape(),
        pytest.raises(tf.errors.InvalidArgumentError, match="bias has"),
    ):
        custom_ops.fused_linear_cross_entropy(labels, inputs, weight, np.zeros(3, np.float32))


# A case takes a second: 256 threads have a tile of 128 x 128 even for three tokens.
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ARGUMENTS)
def test_opcheck(name):
    inputs, attributes = ARGUMENTS[name]()
    op = library.load_builtin("fused_linear_cross_entropy").op(name)
    custom_ops.opcheck(op, *inputs, **attributes, checks=["runs", "empty", "modes", "sizes"], device="emulated")


# File, what is changed in it, and what is found; "" for wrong values, "16" before it in bfloat16. Tokens make two
# chunks, classes two tiles and two parts.
MUTANTS = {
    "copies not waited for": (
        "gemm_cuda.h", "WaitForCopies<kStages - 2>();", "", "kernel gpu::LogitsKernel<.*that was not waited for",
    ),
    "no barrier behind the copies": (
        "gemm_cuda.h", "__syncthreads();  // the copies of all", "// the copies of all",
        "kernel gpu::LogitsKernel<.*(race: |nobody has written)",
    ),
    "no barrier before the next tile": (
        "gemm_cuda.h", "__syncthreads();  // the stages may", "// the stages may",
        "kernel gpu::.*(race: |that was not waited for)",
    ),
    "rows behind the end": (
        "gemm_cuda.h", "first_row + row < source.rows && column", "column", "kernel gpu::.*(behind its end|nobody)",
    ),
    "the begin of each row": (
        "gemm_cuda.h", "source.Row(first_row + row) + column);", "source.Row(first_row + row));", "",
    ),
    "eights of a transposed matrix exchanged": (
        "gemm_cuda.h", "(k + sixteen + in_eight) * kAStep + row + eight",
        "(k + eight + in_eight) * kAStep + row + sixteen", "16",
    ),
    "no barrier before warps' sums are joined": (
        "gpu_logits.h", "    __syncthreads();\n    const int64_t token", "    const int64_t token",
        "kernel gpu::LogitsKernel<.*shared array parts",
    ),
    "classes that there are not": ("gpu_logits.h", ">= left) continue;", "< 0) continue;", ""),
    "labels off by one": ("gpu_logits.h", ".label - first_class : -1", ".label - first_class + 1 : -1", ""),
    "no barrier between logits and gradients": (
        "gpu_gradients.h", "      __syncthreads();\n      if (at >= call.step) continue;",
        "      if (at >= call.step) continue;", "16kernel gpu::LogitGradientsKernel<.*race: ",
    ),
    "the last chunk alone": ("gpu_gradients.h", "if (!into.first) value += sums[at];", "", ""),
    "the first part alone": ("gpu_gradients.h", "part < into.parts; ++part", "part < 1; ++part", ""),
    "scaled and not back": ("gpu_gradients.h", "[r % 2 * 2 + e % 2] * down", "[r % 2 * 2 + e % 2]", ""),
    "no barrier before the next tokens": (
        "gpu_tokens.h", "    __syncthreads();  // before the counts", "    // before the counts",
        "kernel gpu::.*List.*race: .*shared array warps",
    ),
    "a place too far": ("gpu_tokens.h", "if (i < warp) place", "if (i <= warp) place", "kernel gpu::.*"),
}  # fmt: skip
FOLDER = Path(custom_ops.__path__[0]) / "fused_linear_cross_entropy"


@pytest.fixture(scope="module")
def load_mutant(tmp_path_factory):
    """Mutant → its library, for one dtype alone, which compiles sooner."""
    folder = tmp_path_factory.mktemp("mutants")
    declared = r"^#define TK_SETTINGS .*?$|^TK_OP\(.*?\);$"
    schemas = re.findall(declared, (FOLDER / f"{FOLDER.name}.cc").read_text(), re.MULTILINE | re.DOTALL)

    def load(mutant: str):
        changed, old, new, finding = MUTANTS[mutant]
        kept = "bf16" if finding.startswith("16") else "f32"
        target = folder / f"mutant_{list(MUTANTS).index(mutant)}"
        (target / "tftoolkit").mkdir(parents=True)
        sources = [FOLDER / f"{FOLDER.name}.cu", FOLDER / f"{FOLDER.name}_{kept}.cu"]
        shared = [toolchain.INCLUDE_DIR / "tftoolkit" / name for name in ("dispatch.h", "gemm_cuda.h")]
        for path in (*FOLDER.glob("*.h"), *sources, *shared):
            text = path.read_text()
            if path.name == changed:
                assert text.count(old) == 1
                text = text.replace(old, new)
            if path == sources[0]:
                text += "\n".join(schemas)
            if path.name == "dispatch.h":
                others = {"f32": "BF16|F16", "bf16": "F32|F16"}[kept]
                text = re.sub(rf" *case ffi::({others}):.*?;\n", "", text, flags=re.DOTALL)
            (target / ("tftoolkit" if path in shared else ".") / path.name).write_text(text)
        return custom_ops.load(
            target.name,
            [target / path.name for path in sources],
            cuda="emulated",
            include_dirs=[target],
            cache_dir=folder,
        )

    return load


def differs(one, true, mutated) -> bool:
    """Whether the libraries find other numbers."""
    for name in ARGUMENTS:
        inputs, attributes = call_of(name, one)
        expected, found = (opened.op(name)(*inputs, **attributes) for opened in (true, mutated))
        for actual, right in zip(found, expected, strict=True):
            actual, right = (tf.cast(x, tf.float32).numpy() for x in (actual, right))
            limit = (3e-2 if one.dtype == "bfloat16" else 1e-4) * np.abs(right).max()
            if not np.allclose(actual, right, rtol=0, atol=limit):
                return True
    return False


@pytest.mark.exhaustive
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found(load_mutant, mutant):
    finding = MUTANTS[mutant][-1]
    dtype = "bfloat16" if finding.startswith("16") else "float32"
    one = dataclasses.replace(case(1500, depth=8, classes=200, bias=True, label_smoothing=0.1), dtype=dtype)
    true, mutated = library.load_builtin(FOLDER.name), load_mutant(mutant)
    text = finding.removeprefix("16")
    with emulation.settings(max_blocks=1):
        if not text:
            assert differs(one, true, mutated)
            return
        with pytest.raises(tf.errors.InternalError, match=text):
            differs(one, true, mutated)
