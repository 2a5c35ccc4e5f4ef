// RMSNorm and its gradient on the CPU. Per row of d values, in float32:
//
//   inv_rms = 1 / sqrt(mean(x^2) + epsilon)        y = x * inv_rms * gamma
//
//   dx     = inv_rms * (dy * gamma) - x * inv_rms^3 / d * (sum(dy * gamma * x) + d_inv_rms)
//   dgamma = sum over rows of dy * x * inv_rms
//
// The floor is memory traffic: forward reads x and writes y once, backward reads dy and x and writes dx once. A row's
// second pass hits the cache. Rows are cut into tasks by their number and length alone, and partial sums of dgamma are
// added in task order, so results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>

#include "tftoolkit/float_types.h"
#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Half;
using tftoolkit::Load;
using tftoolkit::Store;

template <typename T>
TK_INLINE void ForwardRows(const T* x, const T* gamma, T* y, float* inv_rms, int64_t rows, int64_t d, float epsilon) {
  for (int64_t r = 0; r < rows; ++r, x += d, y += d) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < d; ++i) sum += Load(x[i]) * Load(x[i]);
    const float inv = 1.0f / std::sqrt(sum / static_cast<float>(d) + epsilon);
    inv_rms[r] = inv;
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) y[i] = Store<T>(Load(x[i]) * inv * Load(gamma[i]));
  }
}

// Adds the rows' share of dgamma to `dgamma`, d floats.
template <typename T>
TK_INLINE void BackwardRows(const T* dy, const float* d_inv_rms, const T* x, const T* gamma, const float* inv_rms,
                            T* dx, float* dgamma, int64_t rows, int64_t d) {
  for (int64_t r = 0; r < rows; ++r, dy += d, x += d, dx += d) {
    const float inv = inv_rms[r];
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < d; ++i) {
      const float dy_x = Load(dy[i]) * Load(x[i]);
      dot += dy_x * Load(gamma[i]);
      dgamma[i] += dy_x * inv;
    }
    const float scale = inv * inv * inv * ((dot + d_inv_rms[r]) / static_cast<float>(d));
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) dx[i] = Store<T>(inv * (Load(dy[i]) * Load(gamma[i])) - Load(x[i]) * scale);
  }
}

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_ROWS(T)                                                                                                    \
  TK_SIMD void Forward(const T* x, const T* gamma, T* y, float* inv_rms, int64_t rows, int64_t d, float epsilon) {    \
    ForwardRows<T>(x, gamma, y, inv_rms, rows, d, epsilon);                                                           \
  }                                                                                                                   \
  TK_SIMD void Backward(const T* dy, const float* d_inv_rms, const T* x, const T* gamma, const float* inv_rms, T* dx, \
                        float* dgamma, int64_t rows, int64_t d) {                                                     \
    BackwardRows<T>(dy, d_inv_rms, x, gamma, inv_rms, dx, dgamma, rows, d);                                           \
  }
TK_ROWS(float)
TK_ROWS(BFloat16)
TK_ROWS(Half)

TK_SIMD void Add(const float* values, float* sum, int64_t d) {
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) sum[i] += values[i];
}

struct Rows {
  int64_t rows, d;

  explicit Rows(const ffi::AnyBuffer& x) {
    const auto dims = x.dimensions();
    rows = 1;
    for (size_t i = 0; i + 1 < dims.size(); ++i) rows *= dims[i];
    d = dims.back();
  }
};

constexpr int64_t kElementsPerTask = 1 << 15;  // some 10 µs: well above the price of a task

template <typename T>
ffi::Error RunForward(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const ffi::AnyBuffer& gamma, ffi::AnyBuffer& y,
                      ffi::AnyBuffer& inv_rms, float epsilon) {
  const Rows shape(x);
  const int64_t rows_per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, shape.d));
  const int64_t tasks = (shape.rows + rows_per_task - 1) / rows_per_task;
  const T* x_data = static_cast<const T*>(x.untyped_data());
  const T* gamma_data = static_cast<const T*>(gamma.untyped_data());
  T* y_data = static_cast<T*>(y.untyped_data());
  float* inv_data = static_cast<float*>(inv_rms.untyped_data());
  tftoolkit::ParallelFor(pool, tasks, [&](int64_t task) {
    const int64_t begin = task * rows_per_task;
    const int64_t count = std::min(rows_per_task, shape.rows - begin);
    const int64_t offset = begin * shape.d;
    Forward(x_data + offset, gamma_data, y_data + offset, inv_data + begin, count, shape.d, epsilon);
  });
  return ffi::Error::Success();
}

template <typename T>
ffi::Error RunBackward(ffi::ThreadPool& pool, const ffi::AnyBuffer& dy, const ffi::AnyBuffer& d_inv_rms,
                       const ffi::AnyBuffer& x, const ffi::AnyBuffer& gamma, const ffi::AnyBuffer& inv_rms,
                       ffi::AnyBuffer& dx, ffi::AnyBuffer& dgamma) {
  constexpr int64_t kMaxTasks = 64;  // each holds a partial dgamma
  const Rows shape(x);
  const int64_t d = shape.d;
  const int64_t rows_per_task =
      std::max({int64_t{1}, kElementsPerTask / std::max<int64_t>(1, d), (shape.rows + kMaxTasks - 1) / kMaxTasks});
  const int64_t tasks = std::max<int64_t>(1, (shape.rows + rows_per_task - 1) / rows_per_task);
  // Per task the sum over its blocks of rows, and the block at hand: adding thousands of rows one by one would lose
  // digits that the plain computation keeps.
  constexpr int64_t kRowsPerBlock = 64;
  const std::unique_ptr<float[]> partials(new (std::nothrow) float[2 * tasks * d]());
  if (!partials) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for the partial sums of dgamma");
  const T* dy_data = static_cast<const T*>(dy.untyped_data());
  const T* x_data = static_cast<const T*>(x.untyped_data());
  const T* gamma_data = static_cast<const T*>(gamma.untyped_data());
  const float* d_inv_data = static_cast<const float*>(d_inv_rms.untyped_data());
  const float* inv_data = static_cast<const float*>(inv_rms.untyped_data());
  T* dx_data = static_cast<T*>(dx.untyped_data());
  tftoolkit::ParallelFor(pool, tasks, [&](int64_t task) {
    float* sum = partials.get() + 2 * task * d;
    float* block = sum + d;
    const int64_t end = std::min((task + 1) * rows_per_task, shape.rows);
    for (int64_t begin = task * rows_per_task; begin < end; begin += kRowsPerBlock) {
      const int64_t offset = begin * d;
      std::fill_n(block, d, 0.0f);
      Backward(dy_data + offset, d_inv_data + begin, x_data + offset, gamma_data, inv_data + begin, dx_data + offset,
               block, std::min(kRowsPerBlock, end - begin), d);
      Add(block, sum, d);
    }
  });
  float* sum = partials.get();
  for (int64_t task = 1; task < tasks; ++task) Add(partials.get() + 2 * task * d, sum, d);
  T* dgamma_data = static_cast<T*>(dgamma.untyped_data());
  for (int64_t i = 0; i < d; ++i) dgamma_data[i] = Store<T>(sum[i]);
  return ffi::Error::Success();
}

ffi::Error RmsNorm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::Result<ffi::AnyBuffer> y,
                   ffi::Result<ffi::AnyBuffer> inv_rms, float epsilon) {
  switch (x.element_type()) {
    case ffi::F32:
      return RunForward<float>(pool, x, gamma, *y, *inv_rms, epsilon);
    case ffi::BF16:
      return RunForward<BFloat16>(pool, x, gamma, *y, *inv_rms, epsilon);
    case ffi::F16:
      return RunForward<Half>(pool, x, gamma, *y, *inv_rms, epsilon);
    default:
      return ffi::Error::InvalidArgument("RmsNorm takes f32, bf16 or f16");
  }
}

ffi::Error RmsNormGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer d_inv_rms, ffi::AnyBuffer x,
                       ffi::AnyBuffer gamma, ffi::AnyBuffer inv_rms, ffi::Result<ffi::AnyBuffer> dx,
                       ffi::Result<ffi::AnyBuffer> dgamma) {
  switch (x.element_type()) {
    case ffi::F32:
      return RunBackward<float>(pool, dy, d_inv_rms, x, gamma, inv_rms, *dx, *dgamma);
    case ffi::BF16:
      return RunBackward<BFloat16>(pool, dy, d_inv_rms, x, gamma, inv_rms, *dx, *dgamma);
    case ffi::F16:
      return RunBackward<Half>(pool, dy, d_inv_rms, x, gamma, inv_rms, *dx, *dgamma);
    default:
      return ffi::Error::InvalidArgument("RmsNormGrad takes f32, bf16 or f16");
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(RmsNormCpu, RmsNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER(RmsNormGradCpu, RmsNormGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>());

TK_OP(RmsNorm,
      "<T: f32 | bf16 | f16>"
      "(x: T[... d], gamma: T[d], *, epsilon: f32 = 1e-6) -> (y: T[... d], inv_rms: f32[...]) batchable");
TK_OP(
    RmsNormGrad,
    "<T: f32 | bf16 | f16>"
    "(dy: T[... d], d_inv_rms: f32[...], x: T[... d], gamma: T[d], inv_rms: f32[...]) -> (dx: T[... d], dgamma: T[d])");
TK_KERNEL(RmsNorm, CPU, RmsNormCpu);
TK_KERNEL(RmsNormGrad, CPU, RmsNormGradCpu);
