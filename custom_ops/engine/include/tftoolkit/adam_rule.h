// What Adam with decoupled weight decay does to one number, on the CPU, for the ops that update whole weights and those
// that update rows. Maths: custom_ops/adamw/adamw.cc.

#ifndef TFTOOLKIT_ADAM_RULE_H_
#define TFTOOLKIT_ADAM_RULE_H_

#include <cmath>
#include <cstdint>

#include "tftoolkit/float_types.h"

namespace tftoolkit {

// What is the same for all weights. Of 1 - beta only float64 knows all digits: float32's 1 - 0.999f is off by 5e-5.
struct AdamRule {
  float beta_1, beta_2;
  float rest_1, rest_2;    // 1 - beta
  float scale_1, scale_2;  // 1 / (1 - beta^t)
  float epsilon;

  AdamRule(double beta_1, double beta_2, double t, float epsilon)
      : beta_1(static_cast<float>(beta_1)),
        beta_2(static_cast<float>(beta_2)),
        rest_1(static_cast<float>(1 - beta_1)),
        rest_2(static_cast<float>(1 - beta_2)),
        scale_1(Correction(beta_1, t)),
        scale_2(Correction(beta_2, t)),
        epsilon(epsilon) {}

 private:
  // The logarithm of 0 is minus infinity, to which the power is 0: so beta = 0 needs no case of its own.
  static float Correction(double beta, double t) { return static_cast<float>(-1 / std::expm1(t * std::log(beta))); }
};

// Equal floats need not be: there are two zeros.
TK_INLINE bool SameBits(BFloat16 a, BFloat16 b) { return a.bits == b.bits; }
TK_INLINE bool SameBits(Half a, Half b) { return a.bits == b.bits; }

// Moves n numbers of a weight, its moments and its master, which is null without kMaster. The rule comes by value: what
// is stored could otherwise be a part of it, and it would be read again each time.
template <bool kMaster, typename T, typename G>
TK_INLINE void MoveByAdam(T* w, float* m, float* v, float* master, const G* g, int64_t n, float rate, float decay,
                          AdamRule rule) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float gradient = Load(g[i]);
    m[i] = rule.beta_1 * m[i] + rule.rest_1 * gradient;
    v[i] = rule.beta_2 * v[i] + rule.rest_2 * (gradient * gradient);
    const float direction = m[i] * rule.scale_1 / (std::sqrt(v[i] * rule.scale_2) + rule.epsilon);
    float value = Load(w[i]);
    if constexpr (kMaster) value = SameBits(Store<T>(master[i]), w[i]) ? master[i] : value;
    value -= rate * (direction + decay * value);
    if constexpr (kMaster) master[i] = value;
    w[i] = Store<T>(value);
  }
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_ADAM_RULE_H_
