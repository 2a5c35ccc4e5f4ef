// Cross-entropy of softmax(logits) with whole labels, and its gradient, on the CPU. Per row of V logits, in float32,
// with label l, smoothing s and z-loss z:
//
//   m = max(x)    S = sum(e^(x - m))    lse = m + log S
//   loss = lse - (1 - s) * x[l] - s * mean(x) + z * lse^2      computed as log S - (1 - s) * (x[l] - m) - …
//   dx_j = e^(x_j - m) * (d_loss * (1 + 2 z lse) / S + d_S) - d_loss * (s / V + (1 - s) [j = l])
//
// The floor is memory traffic: forward reads the logits once, backward reads them and writes their gradient once; no
// probabilities are stored. Forward takes a block that fits the first cache twice, for the maximum and for the sum, and
// joins blocks by rescaling (Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867), in double. Rows are computed
// by themselves, so the result does not depend on the number of threads. An exponential costs 0.7 ns on an AVX2 core,
// so it is that which binds few cores, and memory that binds many.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "rows.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/math.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Data;
using tftoolkit::Half;
using tftoolkit::Load;
using tftoolkit::Store;
using Result = ffi::Result<ffi::AnyBuffer>;
using Part = tftoolkit::cross_entropy::Part<double>;
namespace cross_entropy = tftoolkit::cross_entropy;

constexpr int64_t kElementsPerTask = 1 << 15;  // tens of µs
constexpr int64_t kBlock = 1 << 11;            // 8 kB of float32
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename T>
TK_INLINE Part BlockPart(const T* x, int64_t n, bool wants_total) {
  const int64_t half = n / 2;  // two maxima side by side: each comparison has to wait for the one before
  float first = n % 2 ? Load(x[n - 1]) : -kInfinity, second = -kInfinity;
#pragma omp simd reduction(max : first, second)
  for (int64_t i = 0; i < half; ++i) {
    const float a = Load(x[i]), b = Load(x[half + i]);
    first = a > first ? a : first;
    second = b > second ? b : second;
  }
  const float largest = first > second ? first : second;  // a NaN may get lost here; the sum keeps it
  const float shift = std::isfinite(largest) ? largest : 0;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += tftoolkit::Exp(Load(x[i]) - shift);
  float total = 0;
  if (wants_total) {
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) total += Load(x[i]) - shift;
  }
  return {shift, sum, total, n};
}

template <typename T>
TK_INLINE void GradientOf(const T* x, T* dx, int64_t n, float shift, float scale, float offset) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] = Store<T>(tftoolkit::Exp(Load(x[i]) - shift) * scale - offset);
}

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_ROWS(T)                                                                                        \
  TK_SIMD Part Block(const T* x, int64_t n, bool wants_total) { return BlockPart<T>(x, n, wants_total); } \
  TK_SIMD void Backward(const T* x, T* dx, int64_t n, float shift, float scale, float offset) {           \
    GradientOf<T>(x, dx, n, shift, scale, offset);                                                        \
  }
TK_ROWS(float)
TK_ROWS(BFloat16)
TK_ROWS(Half)

template <typename T>
Part Row(const T* x, int64_t classes, bool wants_total) {
  Part row{};
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    tftoolkit::Join(row, Block(x + begin, std::min(kBlock, classes - begin), wants_total), wants_total);
  }
  return row;
}

// The labels as one type, or an error that names one that is no class.
ffi::Error Labels(const ffi::AnyBuffer& given, int64_t classes, int64_t ignore_index, std::vector<int64_t>& labels) {
  labels.resize(given.element_count());
  return tftoolkit::WithIntegerType("SoftmaxCrossEntropy", given.element_type(), [&](auto type) {
    const auto* from = Data<decltype(type)>(given);
    for (size_t i = 0; i < labels.size(); ++i) {
      labels[i] = from[i];
      if (!cross_entropy::IsClass(labels[i], classes) && labels[i] != ignore_index) {
        return cross_entropy::BadLabel(i, labels[i], classes, ignore_index);
      }
    }
    return ffi::Error::Success();
  });
}

int64_t RowsPerTask(int64_t classes) { return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, classes)); }

ffi::Error SoftmaxCrossEntropy(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer given, Result loss,
                               Result max, Result sum, int64_t ignore_index, float label_smoothing, float z_loss) {
  const int64_t classes = logits.dimensions().back();
  std::vector<int64_t> labels;
  if (ffi::Error error = Labels(given, classes, ignore_index, labels); error.failure()) return error;
  float* losses = Data<float>(loss);
  float* shifts = Data<float>(max);
  float* sums = Data<float>(sum);
  const cross_entropy::Options options{ignore_index, label_smoothing, z_loss};
  return tftoolkit::WithFloatType("SoftmaxCrossEntropy", logits.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* data = Data<T>(logits);
    tftoolkit::ParallelRanges(pool, labels.size(), RowsPerTask(classes), [&](int64_t begin, int64_t count) {
      for (int64_t r = begin; r < begin + count; ++r) {
        if (labels[r] == ignore_index) {  // as if all its logits were 0
          losses[r] = shifts[r] = 0;
          sums[r] = static_cast<float>(classes);
          continue;
        }
        const T* x = data + r * classes;
        const Part row = Row(x, classes, label_smoothing != 0);
        losses[r] = cross_entropy::Loss(row, Load(x[labels[r]]), options);
        shifts[r] = row.shift;
        sums[r] = static_cast<float>(row.sum);
      }
    });
    return ffi::Error::Success();
  });
}

ffi::Error SoftmaxCrossEntropyGrad(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer given,
                                   ffi::AnyBuffer d_loss, ffi::AnyBuffer d_sum, ffi::AnyBuffer max, ffi::AnyBuffer sum,
                                   Result dlogits, int64_t ignore_index, float label_smoothing, float z_loss) {
  const int64_t classes = logits.dimensions().back();
  std::vector<int64_t> labels;
  if (ffi::Error error = Labels(given, classes, ignore_index, labels); error.failure()) return error;
  const cross_entropy::Options options{ignore_index, label_smoothing, z_loss};
  const float* d_losses = Data<float>(d_loss);
  const float* d_sums = Data<float>(d_sum);
  const float* shifts = Data<float>(max);
  const float* sums = Data<float>(sum);
  return tftoolkit::WithFloatType("SoftmaxCrossEntropyGrad", logits.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* data = Data<T>(logits);
    T* gradient = Data<T>(dlogits);
    tftoolkit::ParallelRanges(pool, labels.size(), RowsPerTask(classes), [&](int64_t begin, int64_t count) {
      for (int64_t r = begin; r < begin + count; ++r) {
        const T* x = data + r * classes;
        T* dx = gradient + r * classes;
        if (labels[r] == ignore_index) {
          std::fill_n(dx, classes, Store<T>(0));
          continue;
        }
        const auto [shift, scale, offset, share] =
            cross_entropy::RowGradient(d_losses[r], d_sums[r], shifts[r], sums[r], classes, options);
        Backward(x, dx, classes, shift, scale, offset);
        const float own = tftoolkit::Exp(Load(x[labels[r]]) - shift) * scale;
        dx[labels[r]] = Store<T>(own - offset - share);
      }
    });
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(SoftmaxCrossEntropyCpu, SoftmaxCrossEntropy,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<int64_t>("ignore_index")
                           .Attr<float>("label_smoothing")
                           .Attr<float>("z_loss"));

XLA_FFI_DEFINE_HANDLER(SoftmaxCrossEntropyGradCpu, SoftmaxCrossEntropyGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<int64_t>("ignore_index")
                           .Attr<float>("label_smoothing")
                           .Attr<float>("z_loss"));

TK_OP(SoftmaxCrossEntropy,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(logits: T[... classes], labels: I[...], *, ignore_index: i64 = -100, label_smoothing: f32 = 0.0,"
      " z_loss: f32 = 0.0) -> (loss: f32[...], max: f32[...], sum: f32[...]) batchable");
TK_OP(
    SoftmaxCrossEntropyGrad,
    "<T: f32 | bf16 | f16, I: i32 | i64>"
    "(logits: T[... classes], labels: I[...], d_loss: f32[...], d_sum: f32[...], max: f32[...], sum: f32[...], *,"
    " ignore_index: i64 = -100, label_smoothing: f32 = 0.0, z_loss: f32 = 0.0) -> (dlogits: T[... classes]) batchable");
TK_KERNEL(SoftmaxCrossEntropy, CPU, SoftmaxCrossEntropyCpu);
TK_KERNEL(SoftmaxCrossEntropyGrad, CPU, SoftmaxCrossEntropyGradCpu);
