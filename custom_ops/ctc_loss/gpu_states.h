// What CUDA kernels of ctc_loss are made of: numbers of any size, sequences, and the steps of their states.

#ifndef TFTOOLKIT_CTC_LOSS_GPU_STATES_H_
#define TFTOOLKIT_CTC_LOSS_GPU_STATES_H_

#include <cmath>
#include <cstdint>
#include <limits>

#include "tftoolkit/cuda.h"
#include "tftoolkit/math.h"

namespace gpu {

namespace cuda = tftoolkit::cuda;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// mantissa * 2^exponent, as the vectors of wide_numbers.h: the mantissa in [1, 2), a whole exponent, minus infinity for
// zero.
struct Number {
  float mantissa, exponent;
};

__device__ __forceinline__ Number Zero() { return {1.0f, -kInfinity}; }

// 2^e for a whole e up to 127; 0 from -127 on down and for NaN.
__device__ __forceinline__ float PowerOf2(float e) {
  return e > -127.0f ? tftoolkit::BitsFloat(static_cast<uint32_t>(static_cast<int>(e) + 127) << 23) : 0.0f;
}

__device__ __forceinline__ Number Normal(float mantissa, float exponent) {
  const uint32_t bits = tftoolkit::FloatBits(mantissa);
  return {tftoolkit::BitsFloat((bits & 0x007fffffu) | 0x3f800000u),
          exponent + static_cast<float>(static_cast<int>(bits >> 23) - 127)};
}

__device__ __forceinline__ Number Sum(Number a, Number b, Number c) {
  const float top = fmaxf(fmaxf(a.exponent, b.exponent), c.exponent);
  return Normal(a.mantissa * PowerOf2(a.exponent - top) + b.mantissa * PowerOf2(b.exponent - top) +
                    c.mantissa * PowerOf2(c.exponent - top),
                top);
}

__device__ __forceinline__ Number Times(Number a, Number b) {
  return Normal(a.mantissa * b.mantissa, a.exponent + b.exponent);
}

__device__ __forceinline__ Number Power(float x) {  // e^x
  const float k = rintf(x * 1.44269504f);
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  return Normal(x > -kInfinity ? tftoolkit::ExpWithin(r) : 1.0f, k);
}

// A sequence as its tensors say it; `bad`: one of its lengths or labels is out of range.
struct Sequence {
  int64_t begin;  // of its labels
  int64_t frames, count;
  float d_loss;  // of the gradient: 0 where the loss is infinite, NaN where it is NaN
  int32_t bad;   // no bool: all bytes are written

  // Pairs of a blank and a label that count at frame t: see problem.h.
  __device__ __forceinline__ int64_t First(int64_t t) const { return max(int64_t{0}, count - frames + t); }
  __device__ __forceinline__ int64_t Last(int64_t t) const { return min(count, t); }
  __device__ __forceinline__ bool Has(int64_t t, int64_t s) const {
    return s >= 2 * First(t) && s <= min(2 * Last(t) + 1, 2 * count);
  }
};

template <typename T>
struct Given {
  const T* logits;
  cuda::Integers labels, frames, counts;
  int64_t values, width;  // labels in all; of each sequence, 0 where they lie one behind the other
  int64_t batch, time, classes, blank;

  __device__ __forceinline__ int64_t Class(const Sequence& q, int64_t s) const {
    return s % 2 == 0 ? blank : labels[q.begin + s / 2];
  }
  // A way may come to state s from the state before the last one.
  __device__ __forceinline__ bool MaySkipTo(const Sequence& q, int64_t s) const {
    return s % 2 == 1 && s > 1 && labels[q.begin + s / 2] != labels[q.begin + s / 2 - 1];
  }
  __device__ __forceinline__ Number Emitted(const Sequence& q, int64_t b, int64_t t, int64_t s, float shift) const {
    return Power(tftoolkit::Load(logits[(b * time + t) * classes + Class(q, s)]) - shift);
  }
};

// Rows of states of all sequences: those of one lie side by side, `rows` of them.
struct Rows {
  Number* numbers;
  int64_t rows;

  __device__ __forceinline__ Number* Row(const Sequence& q, int64_t b, int64_t row) const {
    return numbers + (2 * q.begin + b) * rows + row % rows * (2 * q.count + 1);
  }
};

// What a row has at state s of frame t; before the first frame and behind the last one there is one state.
__device__ __forceinline__ Number At(const Sequence& q, const Number* row, int64_t t, int64_t s) {
  if (t < 0) return s == 0 ? Number{1, 0} : Zero();
  if (t >= q.frames) return s == 2 * q.count ? Number{1, 0} : Zero();
  return q.Has(t, s) ? row[s] : Zero();
}

// All threads of a block: the sums forward, into as many rows as there are. Returns the sum over all ways.
template <typename T>
__device__ Number RunForward(const Given<T>& all, const Sequence& q, int64_t b, const float* shifts, const Rows& rows) {
  if (q.count > q.frames) return Zero();
  for (int64_t t = 0; t < q.frames; ++t) {
    const Number* from = rows.Row(q, b, t + rows.rows - 1);
    Number* to = rows.Row(q, b, t);
    for (int64_t s = 2 * q.First(t) + threadIdx.x; q.Has(t, s); s += blockDim.x) {
      const Number skipped = all.MaySkipTo(q, s) ? At(q, from, t - 1, s - 2) : Zero();
      to[s] = Times(Sum(At(q, from, t - 1, s), At(q, from, t - 1, s - 1), skipped),
                    all.Emitted(q, b, t, s, shifts[b * all.time + t]));
    }
    __syncthreads();
  }
  const Number* last = rows.Row(q, b, q.frames + rows.rows - 1);
  return Sum(At(q, last, q.frames - 1, 2 * q.count), At(q, last, q.frames - 1, 2 * q.count - 1), Zero());
}

}  // namespace gpu

#endif  // TFTOOLKIT_CTC_LOSS_GPU_STATES_H_
