// LayerNorm and RMSNorm, and their gradients, on the CPU: what ops with and without bias and residual share.
// norm_arguments.h has the maths.
//
// The floor is memory traffic: forward reads x and writes y once, with a residual it reads that and writes s, too;
// backward reads dy and s and writes ds once, with a residual it reads d_sum, too. Later passes over a row hit the
// cache. Rows are cut into tasks by their number and length alone, and partial sums of dgamma and dbias are added in
// task order, so results do not depend on the number of threads.
//
// A mean that is large against the deviation costs no digits: it is summed in double, the variance is taken around it
// in a second pass, and it stays the sum of two floats until it has been subtracted.

#ifndef TFTOOLKIT_NORM_H_
#define TFTOOLKIT_NORM_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/norm_arguments.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace tftoolkit {
namespace norm {

constexpr int64_t kElementsPerTask = 1 << 15;  // some 10 µs: well above the price of a task
constexpr int64_t kBlock = 1 << 10;            // elements added up in float32 before double takes over

// Up to three sums over a row, or terms of them.
template <typename Value>
struct Three {
  Value a, b, c;
};

// Adds up the first kSums of terms(i) over [0, d): in Value over blocks, and the blocks' sums in double. Each half of a
// block has sums of its own, since an addition has to wait for the one before.
template <int kSums, typename Value, typename Terms>
TK_INLINE Three<double> RowSums(int64_t d, const Terms& terms) {
  Three<double> total = {0, 0, 0};
  for (int64_t begin = 0; begin < d; begin += kBlock) {
    const int64_t size = std::min(kBlock, d - begin), half = size / 2, middle = begin + half;
    Value a = 0, b = 0, c = 0, a2 = 0, b2 = 0, c2 = 0;
#pragma omp simd reduction(+ : a, b, c, a2, b2, c2)
    for (int64_t i = begin; i < middle; ++i) {
      const Three<Value> one = terms(i), two = terms(i + half);
      a += one.a, a2 += two.a;
      if (kSums > 1) b += one.b, b2 += two.b;
      if (kSums > 2) c += one.c, c2 += two.c;
    }
    const Three<Value> last = size % 2 ? terms(begin + size - 1) : Three<Value>{0, 0, 0};
    total.a += a + a2 + last.a;
    if (kSums > 1) total.b += b + b2 + last.b;
    if (kSums > 2) total.c += c + c2 + last.c;
  }
  return total;
}

// The mean is shift + rest.
struct Moments {
  float shift, rest, variance;
};

template <bool kCentred, typename T>
TK_INLINE Moments RowMoments(const T* x, int64_t d) {
  const double n = static_cast<double>(d);
  double mean = 0;
  if (kCentred) {
    const auto value = [x](int64_t i) TK_INLINE_LAMBDA { return Three<double>{Load(x[i]), 0, 0}; };
    mean = RowSums<1, double>(d, value).a / n;
  }
  const float shift = static_cast<float>(mean), rest = static_cast<float>(mean - shift);
  const auto square = [x, shift, rest](int64_t i) TK_INLINE_LAMBDA {
    const float centred = (Load(x[i]) - shift) - rest;
    return Three<float>{centred * centred, 0, 0};
  };
  return {shift, rest, static_cast<float>(RowSums<1, float>(d, square).a / n)};
}

template <bool kCentred, typename T>
TK_INLINE void ForwardRows(Forward<T> all, int64_t rows) {
  const T* gamma = all.gamma;
  const T* bias = all.bias;
  const int64_t d = all.d;
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = all.x + r * d;
    if (all.residual) {
      const T* residual = all.residual + r * d;
      T* sum = all.sum + r * d;
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) sum[i] = Store<T>(Load(x[i]) + Load(residual[i]));
      x = sum;
    }
    const Moments moments = RowMoments<kCentred>(x, d);
    const float shift = moments.shift, rest = moments.rest;
    const float inv = 1.0f / std::sqrt(moments.variance + all.epsilon);
    all.inv[r] = inv;
    if (kCentred) all.mean[r] = shift;
    T* y = all.y + r * d;
    if (bias) {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) {
        y[i] = Store<T>(((Load(x[i]) - shift) - rest) * inv * Load(gamma[i]) + Load(bias[i]));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) y[i] = Store<T>(((Load(x[i]) - shift) - rest) * inv * Load(gamma[i]));
    }
  }
}

// Adds the rows' shares to dgamma and dbias, d floats each.
template <bool kCentred, typename T>
TK_INLINE void BackwardRows(Backward<T> all, int64_t rows, float* dgamma, float* dbias) {
  const T* gamma = all.gamma;
  const int64_t d = all.d;
  const double n = static_cast<double>(d);
  for (int64_t r = 0; r < rows; ++r) {
    const T* dy = all.dy + r * d;
    const T* x = all.x + r * d;
    T* dx = all.dx + r * d;
    const float shift = kCentred ? all.mean[r] : 0;
    const float inv = all.inv[r];
    const auto products = [=](int64_t i) TK_INLINE_LAMBDA {
      const float g = Load(dy[i]) * Load(gamma[i]);
      const float centred = Load(x[i]) - shift;
      return Three<float>{g * centred, g, centred};
    };
    constexpr int kSums = kCentred ? 3 : 1;
    const Three<double> sums = RowSums<kSums, float>(d, products);
    // What rounding the mean to one float left; then the means over the row. Differences are taken in double, and below
    // before they are multiplied by inv: where a row is nearly constant, they are small against their terms.
    const double left = kCentred ? sums.c / n : 0, sum_g = kCentred ? sums.b : 0;
    const float rest = static_cast<float>(left), mean_g = static_cast<float>(sum_g / n);
    const float mean_gh = static_cast<float>((sums.a - left * sum_g) * inv / n);
    const float from_inv = inv * inv * all.d_inv[r] / static_cast<float>(d);
    const float from_mean = kCentred ? all.d_mean[r] / static_cast<float>(d) : 0;
    if (all.d_sum) {
      const T* d_sum = all.d_sum + r * d;
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) {
        const float above = Load(dy[i]), h = ((Load(x[i]) - shift) - rest) * inv;
        const float whitened = inv * (above * Load(gamma[i]) - mean_g - h * mean_gh);
        dx[i] = Store<T>(whitened - h * from_inv + from_mean + Load(d_sum[i]));
        dgamma[i] += above * h;
        dbias[i] += above;
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) {
        const float above = Load(dy[i]), h = ((Load(x[i]) - shift) - rest) * inv;
        const float whitened = inv * (above * Load(gamma[i]) - mean_g - h * mean_gh);
        dx[i] = Store<T>(whitened - h * from_inv + from_mean);
        dgamma[i] += above * h;
        dbias[i] += above;
      }
    }
  }
}

// Calls rows(part, count), a TK_SIMD function that holds ForwardRows, for the parts of `all`.
template <typename T, typename Rows>
ffi::Error RunForward(ffi::ThreadPool& pool, const Forward<T>& all, int64_t count, const Rows& rows) {
  const int64_t rows_per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, all.d));
  ParallelRanges(pool, count, rows_per_task, [&](int64_t begin, int64_t n) { rows(all.From(begin), n); });
  return ffi::Error::Success();
}

template <typename Value>
void Add(const Value* values, double* sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += values[i];
}

// Calls rows(part, count, dgamma, dbias), a TK_SIMD function that holds BackwardRows.
template <typename T, typename Rows>
ffi::Error RunBackward(ffi::ThreadPool& pool, const Backward<T>& all, int64_t count, T* dgamma, T* dbias,
                       const Rows& rows) {
  constexpr int64_t kMaxTasks = 64;  // each holds partial sums
  // Added up in float32; their sums in double: thousands of rows would lose digits that the plain computation keeps.
  constexpr int64_t kRowsPerBlock = 8;
  const int64_t d = all.d, both = 2 * d;
  const int64_t rows_per_task =
      std::max({int64_t{1}, kElementsPerTask / std::max<int64_t>(1, d), (count + kMaxTasks - 1) / kMaxTasks});
  const int64_t tasks = std::max<int64_t>(1, (count + rows_per_task - 1) / rows_per_task);
  const std::unique_ptr<double[]> partials(new (std::nothrow) double[tasks * both]());
  if (!partials) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for the partial sums of dgamma and dbias");
  }
  ParallelRanges(pool, count, rows_per_task, [&](int64_t first, int64_t n) {
    double* sum = partials.get() + first / rows_per_task * both;
    std::vector<float> block(both);
    for (int64_t done = 0; done < n; done += kRowsPerBlock) {
      std::fill(block.begin(), block.end(), 0.0f);
      rows(all.From(first + done), std::min(kRowsPerBlock, n - done), block.data(), block.data() + d);
      Add(block.data(), sum, both);
    }
  });
  double* sum = partials.get();
  for (int64_t task = 1; task < tasks; ++task) Add(partials.get() + task * both, sum, both);
  for (int64_t i = 0; i < d; ++i) {
    dgamma[i] = Store<T>(static_cast<float>(sum[i]));
    dbias[i] = Store<T>(static_cast<float>(sum[d + i]));
  }
  return ffi::Error::Success();
}

}  // namespace norm
}  // namespace tftoolkit

#endif  // TFTOOLKIT_NORM_H_
