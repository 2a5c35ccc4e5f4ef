// The maths of a row, for CPU and CUDA: how parts of a row are joined, its loss, and what its gradient is made of.
// softmax_cross_entropy.cc says what is computed.

#ifndef TFTOOLKIT_SOFTMAX_CROSS_ENTROPY_ROWS_H_
#define TFTOOLKIT_SOFTMAX_CROSS_ENTROPY_ROWS_H_

#include <cmath>
#include <cstdint>
#include <string>

#include "tftoolkit/math.h"
#include "tftoolkit/op.h"

namespace tftoolkit {
namespace cross_entropy {

struct Options {
  int64_t ignore_index;
  float label_smoothing, z_loss;
};

// What a row or a part of it adds up to: sum of e^(x - shift), and, if wanted, of x - shift. `shift` is finite.
template <typename Real>
struct Part {
  float shift;
  Real sum, total;
  int64_t count;
};

TK_INLINE float ExpOf(float x) { return Exp(x); }
TK_INLINE double ExpOf(double x) { return std::exp(x); }

// Adds the other part to `row` (Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867).
template <typename Real>
TK_INLINE void Join(Part<Real>& row, const Part<Real>& other, bool wants_total) {
  // Until a term is not 0 (there may be none: all logits minus infinity) the shift says nothing.
  const bool first = row.sum == 0, last = other.sum == 0;
  const float shift = first ? other.shift : last || row.shift > other.shift ? row.shift : other.shift;
  const Real move_row = static_cast<Real>(row.shift) - shift, move_other = static_cast<Real>(other.shift) - shift;
  if (wants_total) {
    row.total += static_cast<Real>(row.count) * move_row + other.total + static_cast<Real>(other.count) * move_other;
  }
  row.sum = (first ? 0 : row.sum * ExpOf(move_row)) + (last ? 0 : other.sum * ExpOf(move_other));
  row.shift = shift;
  row.count += other.count;
}

// In double: a loss may be the difference of large numbers.
TK_INLINE float Loss(const Part<double>& row, float label_logit, const Options& options) {
  const double log_sum = std::log(row.sum), lse = row.shift + log_sum, smoothing = options.label_smoothing;
  double value = log_sum - (1 - smoothing) * (static_cast<double>(label_logit) - row.shift);
  if (smoothing != 0) value -= smoothing * (row.total / static_cast<double>(row.count));
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
