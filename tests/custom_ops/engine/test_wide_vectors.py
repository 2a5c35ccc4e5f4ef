"""What blocked kernels do with the 16 lanes of AVX-512, run on any x86-64 processor that has AVX2.

Their sources say nothing of the width but in a macro, so the code for 16 lanes can be compiled for AVX2, which takes
two registers for each vector. Its speed says nothing; masks, panels and rests of 16 and 32 lanes are what is run here.
"""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.engine.declaration import camel_case

AVX512 = 'target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")'
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("avx2" not in Path("/proc/cpuinfo").read_text(), reason="no AVX2 here"),
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """An op's folder → its library, which takes the code for AVX-512 on any processor."""

    def load(folder: str):
        source = Path(custom_ops.__path__[0]) / folder / f"{folder}.cc"
        text = source.read_text()
        assert (text.count(AVX512), text.count("tftoolkit::BestIsa() == Isa::kAvx512")) == (1, 2)
        text = text.replace(AVX512, 'target("avx2,fma")').replace("tftoolkit::BestIsa() == Isa::kAvx512", "true")
        assert text.count("tftoolkit::HasBf16Products()") == 1
        text = "#define TK_PLAIN_PAIRS\n" + text.replace("tftoolkit::HasBf16Products()", "true")
        path = tmp_path_factory.mktemp(folder) / "wide.cc"
        path.write_text(text)
        return custom_ops.load(f"Wide{camel_case(folder)}", [path], include_dirs=[source.parent])

    return load


def random(*shape: int, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(np.random.default_rng(len(shape)).standard_normal(shape), dtype)


def assert_close(found, expected) -> None:
    """Of bfloat16 as far as its operands' and its results' digits go."""
    digits = (2e-4, 2e-5) if found[0].dtype == tf.float32 else (3e-2, 3e-2)
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            one, other = (tf.cast(x, tf.float32).numpy() for x in (one, other))
            largest = max(1.0, np.abs(other[np.isfinite(other)]).max())
            np.testing.assert_allclose(one, other, rtol=digits[0], atol=digits[1] * largest)


dtypes = pytest.mark.parametrize(
    "dtype", [tf.float32, pytest.param(tf.bfloat16, marks=pytest.mark.exhaustive)], ids=["float32", "bfloat16"]
)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "window": 40}, {"softcap": 2.0, "causal": True}], ids=["full", "window", "softcap"]
)
@dtypes
def test_flash_attention(wide, options, dtype):
    library = wide("flash_attention")
    assert custom_ops.flash_attention  # loads the built-in one
    names = "FlashAttention", "FlashAttentionGrad"
    for queries, keys, depth in ((1, 1, 3), (70, 131, 17), (33, 200, 64), (97, 97, 40)):
        shapes = (2, queries, 4, depth), (2, keys, 2, depth), (2, keys, 2, depth + 1), (1, 4, queries, keys)
        q, k, v, bias = (random(*shape, dtype=dtype) for shape in shapes)
        lengths, d_o = tf.constant([keys, keys // 2]), random(2, queries, 4, depth + 1, dtype=dtype)
        results = []
        for forward, backward in (
            (library.flash_attention, library.flash_attention_grad),
            tuple(ops.find(f"TfToolkit>{name}") for name in names),
        ):
            out = forward(q, k, v, bias, lengths, scale=0.3, has_lse=True, **options)
            back = backward(
                *(q, k, v, bias, lengths, *out[:3], d_o, tf.zeros_like(out.score_max)),
                **{"scale": 0.3, "biased": True, "has_dbias": True, **options},
            )
            results.append([*out, *back])
        assert_close(*results)


@dtypes
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "logit_softcap": 3.0, "z_loss": 0.1}])
def test_fused_linear_cross_entropy(wide, options, dtype):
    library = wide("fused_linear_cross_entropy")
    assert custom_ops.fused_linear_cross_entropy
    for tokens, depth, classes in ((1, 1, 1), (33, 17, 200), (300, 40, 531)):
        shapes = (tokens, depth), (classes, depth), (classes,)
        inputs, weight, bias = (random(*shape, dtype=dtype) for shape in shapes)
        labels = tf.constant(np.arange(tokens) * 7 % classes)
        results = []
        for forward, backward in (
            (library.fused_linear_cross_entropy, library.fused_linear_cross_entropy_grad),
            tuple(ops.find(f"TfToolkit>FusedLinearCrossEntropy{part}") for part in ("", "Grad")),
        ):
            out = forward(inputs, weight, bias, labels, None, **options)
            rows = tf.ones_like(out.loss), random(tokens, dtype=tf.float32)
            back = backward(inputs, weight, bias, labels, None, *rows, biased=True, has_dbias=True, **options)
            results.append([*out, *back])
        assert_close(*results)
