// The activations of gated linear units, with their slopes, for CPU and CUDA.

#ifndef TFTOOLKIT_ACTIVATIONS_H_
#define TFTOOLKIT_ACTIVATIONS_H_

#include "tftoolkit/math.h"

namespace tftoolkit {
namespace gate {

// What an activation's static function `Of(float)` returns.
struct Activation {
  float value, slope;
};

// silu(x) = x / (1 + e^-x)
struct Silu {
  static TK_INLINE Activation Of(float x) {
    const LogisticPair s = Logistic(x);
    const float value = x * s.value;
    return {value, s.value + value * s.rest};
  }
};

// gelu(x) = x * P(x), P being the standard normal distribution, whose derivative is its density.
struct Gelu {
  static TK_INLINE Activation Of(float x) {
    const Normal normal = StandardNormal(x);
    return {x * normal.below, normal.below + x * normal.density};
  }
};

// x * (1 + tanh(t)) / 2 = x * sigmoid(2t), t = sqrt(2 / pi) * (x + 0.044715 x^3)
struct ApproximateGelu {
  static TK_INLINE Activation Of(float x) {
    constexpr float kScale = 1.5957691216f;  // 2 sqrt(2 / pi)
    const float square = x * x;
    const LogisticPair s = Logistic(kScale * x * (1.0f + 0.044715f * square));
    // Where s (1 - s) is 0, the square may be infinite.
    const float bend = s.value * s.rest;
    const float inner = bend == 0.0f ? 0.0f : bend * x * (kScale * (1.0f + 0.134145f * square));
    return {x * s.value, x == x ? s.value + inner : x};
  }
};

}  // namespace gate
}  // namespace tftoolkit

#endif  // TFTOOLKIT_ACTIVATIONS_H_
