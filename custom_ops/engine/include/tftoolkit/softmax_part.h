// Sums of a softmax over a part of its terms, and how parts are joined (Milakov & Gimelshein 2018,
// https://arxiv.org/abs/1805.02867); for CPU and CUDA.

#ifndef TFTOOLKIT_SOFTMAX_PART_H_
#define TFTOOLKIT_SOFTMAX_PART_H_

#include <cmath>

#include "tftoolkit/math.h"

namespace tftoolkit {

// The sum of e^(x - shift), and, if wanted, of weight * (x - shift) and of the weights. `shift` is finite.
template <typename Real, typename Weight>
struct SoftmaxPart {
  float shift;
  Real sum, total;
  Weight weight;
};

TK_INLINE float ExpOf(float x) { return Exp(x); }
TK_INLINE double ExpOf(double x) { return std::exp(x); }

// Adds the other part to `row`.
template <typename Real, typename Weight>
TK_INLINE void Join(SoftmaxPart<Real, Weight>& row, const SoftmaxPart<Real, Weight>& other, bool wants_total) {
  // Until a term is not 0 (there may be none: all x minus infinity) the shift says nothing.
  const bool first = row.sum == 0, last = other.sum == 0;
  const float shift = first ? other.shift : last || row.shift > other.shift ? row.shift : other.shift;
  const Real move_row = static_cast<Real>(row.shift) - shift, move_other = static_cast<Real>(other.shift) - shift;
  if (wants_total) {
    row.total += static_cast<Real>(row.weight) * move_row + other.total + static_cast<Real>(other.weight) * move_other;
  }
  row.sum = (first ? 0 : row.sum * ExpOf(move_row)) + (last ? 0 : other.sum * ExpOf(move_other));
  row.shift = shift;
  row.weight += other.weight;
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_SOFTMAX_PART_H_
