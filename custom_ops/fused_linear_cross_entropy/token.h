// The maths of a token, for CPU and CUDA: its loss, and what its gradients are made of. fused_linear_cross_entropy.cc
// says what is computed.

#ifndef TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_TOKEN_H_
#define TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_TOKEN_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "tftoolkit/float_types.h"
#include "tftoolkit/op.h"

namespace tftoolkit {
namespace linear_cross_entropy {

// A row of the inputs whose label is not ignored.
struct Token {
  int64_t row, label;
};

// What all tokens share.
struct Terms {
  int64_t rows, depth, classes;      // rows: also those that are ignored
  float smoothing, z_loss, softcap;  // softcap 0: none
  const float* class_weight;         // null: 1 each

  TK_INLINE float ClassWeight(int64_t c) const { return class_weight == nullptr ? 1.0f : class_weight[c]; }
};

// Log-sum-exp and loss of one token.
struct Loss {
  double shift, log_sum, value;
  TK_INLINE double lse() const { return shift + log_sum; }
};

// From the sums of e^(x - shift) and of class weight * (x - shift) over the classes, and the label's x - shift; weight
// and weight_sum are the class weights of the label and of all classes. In double: a loss may be the difference of
// large numbers.
TK_INLINE Loss LossOf(const Terms& t, double shift, double sum, double total, double own, double weight,
                      double weight_sum) {
  const double log_sum = std::log(sum), smoothing = t.smoothing, lse = shift + log_sum;
  double value = weight * (1 - smoothing) * (log_sum - own);
  if (smoothing != 0) value += smoothing / static_cast<double>(t.classes) * (weight_sum * log_sum - total);
  if (t.z_loss != 0) value += t.z_loss * lse * lse;
  return {shift, log_sum, value};
}

// The gradient by a logit: e^(x - shift) * inverse * scale - even * class weight, and at the label `own` less.
struct Factors {
  float shift, inverse, scale, even, own;
};

TK_INLINE Factors FactorsOf(const Terms& t, const Loss& loss, double d_loss, double d_lse, double weight,
                            double weight_sum) {
  const double smoothing = t.smoothing, own = d_loss * (1 - smoothing) * weight,
               even = d_loss * smoothing / static_cast<double>(t.classes);
  const bool infinite = loss.log_sum == std::numeric_limits<double>::infinity();  // minus infinity: NaN
  return {static_cast<float>(loss.shift),
          infinite ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(1 / std::exp(loss.log_sum)),
          static_cast<float>(own + even * weight_sum + 2 * d_loss * t.z_loss * loss.lse() + d_lse),
          static_cast<float>(even), static_cast<float>(own)};
}

inline ffi::Error BadLabel(int64_t index, int64_t label, int64_t classes, int64_t ignore_index) {
  return ffi::Error::InvalidArgument("labels holds " + std::to_string(label) + " (element " + std::to_string(index) +
                                     "), but must hold classes, from 0 to below " + std::to_string(classes) +
                                     ", the first dimension of weight, or " + std::to_string(ignore_index) +
                                     ", ignore_index");
}

// Of the op that computes gradients, whose schema does not say how long its bias must be.
inline ffi::Error CheckBias(bool biased, bool has_dbias, const ffi::AnyBuffer& bias, const ffi::AnyBuffer& weight) {
  if (has_dbias && !biased) return ffi::Error::InvalidArgument("has_dbias=True needs biased=True");
  if (!biased || static_cast<int64_t>(bias.element_count()) == weight.dimensions()[0]) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("bias has " + std::to_string(bias.element_count()) + " elements, but weight " +
                                     std::to_string(weight.dimensions()[0]) + " rows");
}

}  // namespace linear_cross_entropy
}  // namespace tftoolkit

#endif  // TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_TOKEN_H_
