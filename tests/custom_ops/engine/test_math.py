"""tftoolkit/math.h has the errors that it promises, vectorised and not, and handles infinities and NaN."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tftoolkit import custom_ops

pytestmark = pytest.mark.slow  # compiles a library

SOURCE = """
#include "tftoolkit/math.h"
#include "tftoolkit/simd.h"

enum { kExp, kWideExp, kWideLog, kLogistic, kRest, kBelow, kDensity, kSine, kCosine };

template <typename Function>
TK_INLINE void Map(const double* x, double* y, int64_t n, const Function& function) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = function(x[i]);
}

#define MAP(which_, value) \\
  if (which == which_) Map(x, y, n, [](double v) TK_INLINE_LAMBDA { return value; });
#define EACH(name)                                                        \\
  static void name(const double* x, double* y, int64_t n, int64_t which) { \\
    using namespace tftoolkit;                                            \\
    MAP(kExp, Exp(static_cast<float>(v)))                                 \\
    MAP(kWideExp, WideExp(v))                                             \\
    MAP(kWideLog, WideLog(v))                                             \\
    MAP(kLogistic, Logistic(static_cast<float>(v)).value)                 \\
    MAP(kRest, Logistic(static_cast<float>(v)).rest)                      \\
    MAP(kBelow, StandardNormal(static_cast<float>(v)).below)              \\
    MAP(kDensity, StandardNormal(static_cast<float>(v)).density)          \\
    MAP(kSine, SinCos(v).sine)                                            \\
    MAP(kCosine, SinCos(v).cosine)                                        \\
  }
TK_SIMD EACH(Fused)
EACH(Plain)

static ffi::Error Elementary(ffi::Buffer<ffi::F64> x, ffi::ResultBuffer<ffi::F64> y, bool fused, int64_t which) {
  (fused ? Fused : Plain)(x.typed_data(), y->typed_data(), x.element_count(), which);
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(ElementaryCpu, Elementary,
                       ffi::Ffi::Bind()
                           .Arg<ffi::Buffer<ffi::F64>>()
                           .Ret<ffi::Buffer<ffi::F64>>()
                           .Attr<bool>("fused")
                           .Attr<int64_t>("which"));
TK_OP(Elementary, "(x: f64[n], *, which: i64, fused: bool) -> (y: f64[n])");
TK_KERNEL(Elementary, CPU, ElementaryCpu);
"""
NAMES = ("exp", "wide_exp", "wide_log", "logistic", "rest", "below", "density", "sine", "cosine")
FUSED = pytest.mark.parametrize("fused", [False, True])


@pytest.fixture(scope="module")
def evaluate():
    op = custom_ops.load_inline("ElementaryFunctions", SOURCE).elementary
    return lambda name, x, fused: op(np.float64(x), which=NAMES.index(name), fused=fused).numpy()


@FUSED
@pytest.mark.parametrize(
    ("name", "exact", "low", "high", "ulp"),
    [
        ("exp", np.exp, -87.3, 88.7, 2),
        ("logistic", special.expit, -87.0, 100.0, 3),
        ("rest", lambda x: special.expit(-x), -100.0, 87.0, 3),
        ("below", special.ndtr, -12.8, 8.0, 8),
        ("density", lambda x: np.exp(-x * x / 2) / np.sqrt(2 * np.pi), -12.8, 12.8, 8),
    ],
)
def test_errors_in_units_in_the_last_place(evaluate, name, exact, low, high, ulp, fused):
    x = np.float64(np.float32(np.linspace(low, high, 2_000_001)))
    right = exact(x)
    errors = np.abs(evaluate(name, x, fused) - right) / np.spacing(np.float32(right))
    assert errors.max() <= ulp, (errors.max(), x[errors.argmax()])


@FUSED
def test_in_double(evaluate, fused):
    x = np.linspace(-708, 709, 1_000_001)
    right = np.exp(np.longdouble(x))
    assert np.max(np.abs(evaluate("wide_exp", x, fused) - right) / np.spacing(np.float64(right))) <= 2
    found = evaluate("wide_exp", [-np.inf, -709, 0, 710, np.inf, np.nan], fused)
    np.testing.assert_array_equal(found, [0, 0, 1, np.inf, np.inf, np.nan])
    for values in (np.exp(x), np.linspace(0.7, 1.42, 1_000_001)):
        right = np.log(np.longdouble(values))
        allowed = np.maximum(2 * np.spacing(np.abs(np.float64(right))), 2.0**-53)
        assert np.all(np.abs(evaluate("wide_log", values, fused) - right) <= allowed)
    found = evaluate("wide_log", [0, 1, np.inf, -1, np.nan, -np.inf], fused)
    np.testing.assert_array_equal(found, [-np.inf, 0, np.inf, np.nan, np.nan, np.nan])


@FUSED
@pytest.mark.parametrize(("largest", "allowed"), [(1.0, 1.2e-7), (2.0**20, 1.2e-7), (2.0**31, 1e-6)])
def test_sines_and_cosines_of_large_angles(evaluate, largest, allowed, fused):
    x = np.random.default_rng(0).uniform(-largest, largest, 1_000_000)
    assert np.abs(evaluate("sine", x, fused) - np.sin(x)).max() <= allowed
    assert np.abs(evaluate("cosine", x, fused) - np.cos(x)).max() <= allowed


@FUSED
def test_infinities_and_nan(evaluate, fused):
    ends = {"exp": (0, np.inf), "logistic": (0, 1), "rest": (1, 0), "below": (0, 1), "density": (0, 0)}
    for name, (left, right) in ends.items():
        found = evaluate(name, [-np.inf, -1e30, -200, 200, 1e30, np.inf, np.nan], fused)
        np.testing.assert_array_equal(found[:6], [left] * 3 + [right] * 3)
        assert np.isfinite(found[6]) if name in ("logistic", "rest") else np.isnan(found[6])
    for name in ("sine", "cosine"):
        assert np.isnan(evaluate(name, [np.nan, np.inf], fused)).all()


def test_what_is_subnormal_becomes_it_or_zero(evaluate):
    x = np.linspace(-110, -87.4, 1000)
    found, right = evaluate("exp", x, True), np.exp(x)
    assert ((np.abs(found - right) <= 2**-148) | (found == 0)).all()
    assert not tf.reduce_any(found < 0)
