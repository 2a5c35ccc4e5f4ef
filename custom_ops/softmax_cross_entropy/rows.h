// The maths of a row, for CPU and CUDA: its loss, and what its gradient is made of.
// softmax_cross_entropy.cc says what is computed.

#ifndef TFTOOLKIT_SOFTMAX_CROSS_ENTROPY_ROWS_H_
#define TFTOOLKIT_SOFTMAX_CROSS_ENTROPY_ROWS_H_

#include <cmath>
#include <cstdint>
#include <string>

#include "tftoolkit/op.h"
#include "tftoolkit/softmax_part.h"

namespace tftoolkit {
namespace cross_entropy {

struct Options {
  int64_t ignore_index;
  float label_smoothing, z_loss;
};

template <typename Real>
using Part = SoftmaxPart<Real, int64_t>;  // each logit with weight 1

// In double: a loss may be the difference of large numbers.
TK_INLINE float Loss(const Part<double>& row, float label_logit, const Options& options) {
  const double log_sum = std::log(row.sum), lse = row.shift + log_sum, smoothing = options.label_smoothing;
  double value = log_sum - (1 - smoothing) * (static_cast<double>(label_logit) - row.shift);
  if (smoothing != 0) value -= smoothing * (row.total / static_cast<double>(row.weight));
  if (options.z_loss != 0) value += options.z_loss * lse * lse;
  return static_cast<float>(value);
}

// dx_j = e^(x_j - shift) * scale - offset, and at the label `share` less.
struct Gradient {
  float shift, scale, offset, share;
};

TK_INLINE Gradient RowGradient(float d_loss, float d_sum, float shift, float sum, int64_t classes,
                               const Options& options) {
  float inner = d_loss;
  if (options.z_loss != 0) inner *= 1 + 2 * options.z_loss * (shift + std::log(sum));
  return {shift, inner / sum + d_sum, d_loss * options.label_smoothing / static_cast<float>(classes),
          d_loss * (1 - options.label_smoothing)};
}

TK_INLINE bool IsClass(int64_t label, int64_t classes) { return label >= 0 && label < classes; }

inline ffi::Error BadLabel(int64_t index, int64_t label, int64_t classes, int64_t ignore_index) {
  return ffi::Error::InvalidArgument("labels holds " + std::to_string(label) + " (element " + std::to_string(index) +
                                     "), but must hold classes, from 0 to below " + std::to_string(classes) +
                                     ", the last dimension of logits, or " + std::to_string(ignore_index) +
                                     ", ignore_index");
}

}  // namespace cross_entropy
}  // namespace tftoolkit

#endif  // TFTOOLKIT_SOFTMAX_CROSS_ENTROPY_ROWS_H_
