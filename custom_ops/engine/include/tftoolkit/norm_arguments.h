// LayerNorm and RMSNorm, and their gradients: what kernels for CPU and CUDA are called with. Per row of d values, in
// float32; RMSNorm has no mean, so there it is 0:
//
//   s = x + residual (rounded as it is stored)    mean = mean(s)    inv = 1 / sqrt(mean((s - mean)^2) + epsilon)
//   h = (s - mean) * inv                          y = h * gamma + bias
//
//   g = dy * gamma
//   ds = inv * (g - mean(g) - h * mean(g * h)) + d_mean / d - h * inv^2 * d_inv / d + d_sum
//   dgamma = sum over rows of dy * h              dbias = sum over rows of dy

#ifndef TFTOOLKIT_NORM_ARGUMENTS_H_
#define TFTOOLKIT_NORM_ARGUMENTS_H_

#include <cstdint>

namespace tftoolkit {
namespace norm {

// Rows to normalise. No `residual`: none is added, and `sum` is unused. No `bias`: there is none. No `mean`: RMSNorm.
template <typename T>
struct Forward {
  const T* x;
  const T* residual;
  const T* gamma;
  const T* bias;
  T* y;
  T* sum;
  float* mean;
  float* inv;
  int64_t d;
  float epsilon;

  // The same from another row on.
  Forward From(int64_t row) const {
    const int64_t offset = row * d;
    return {x + offset,
            residual ? residual + offset : nullptr,
            gamma,
            bias,
            y + offset,
            sum ? sum + offset : nullptr,
            mean ? mean + row : nullptr,
            inv + row,
            d,
            epsilon};
  }
};

// Rows of the gradient; `x` is what was normalised. No `d_sum`: nothing came back from the sum with the residual.
template <typename T>
struct Backward {
  const T* dy;
  const float* d_mean;
  const float* d_inv;
  const T* d_sum;
  const T* x;
  const T* gamma;
  const float* mean;
  const float* inv;
  T* dx;
  int64_t d;

  Backward From(int64_t row) const {
    const int64_t offset = row * d;
    return {dy + offset,
            d_mean ? d_mean + row : nullptr,
            d_inv + row,
            d_sum ? d_sum + offset : nullptr,
            x + offset,
            gamma,
            mean ? mean + row : nullptr,
            inv + row,
            dx + offset,
            d};
  }
};

}  // namespace norm
}  // namespace tftoolkit

#endif  // TFTOOLKIT_NORM_ARGUMENTS_H_
