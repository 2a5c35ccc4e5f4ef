// Loops over the states of a step, for every instruction set. Rows have a multiple of kLanes floats.

#ifndef TFTOOLKIT_CRF_LOOPS_H_
#define TFTOOLKIT_CRF_LOOPS_H_

#include <cstdint>

#include "tftoolkit/float_types.h"
#include "tftoolkit/math.h"
#include "tftoolkit/simd.h"

namespace tftoolkit {
namespace crf {

constexpr int64_t kLanes = 16;

inline int64_t Padded(int64_t states) { return (states + kLanes - 1) / kLanes * kLanes; }

// y_j = sum_i x_i m_ij, of a matrix with `rows` rows.
TK_SIMD inline void Product(const float* x, const float* matrix, float* y, int64_t rows, int64_t width) {
  for (int64_t begin = 0; begin < width; begin += kLanes) {
    float sum[kLanes] = {};
    const float* row = matrix + begin;
    for (int64_t i = 0; i < rows; ++i, row += width) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) sum[l] += x[i] * row[l];
    }
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) y[begin + l] = sum[l];
  }
}

// m_ij += x_i y_j
TK_SIMD inline void AddOuter(const float* x, const float* y, float* matrix, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i, matrix += width) {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) matrix[j] += x[i] * y[j];
  }
}

// The largest; of NaN nobody knows.
TK_SIMD inline float Largest(const float* x, int64_t n) {
  float largest = -__builtin_huge_valf();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

TK_SIMD inline float Smallest(const float* x, int64_t n) {
  float smallest = __builtin_huge_valf();
#pragma omp simd reduction(min : smallest)
  for (int64_t i = 0; i < n; ++i) smallest = x[i] < smallest ? x[i] : smallest;
  return smallest;
}

// x -= shift, and e^x.
TK_SIMD inline void ShiftAndExp(float* x, float shift, float* power, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    x[i] -= shift;
    power[i] = Exp(x[i]);
  }
}

TK_SIMD inline void AddLog(const float* logits, const float* top, const float* sum, float* next, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) next[i] = logits[i] + (top[i] + Log(sum[i]));
}

// x / y, where y is not 0.
TK_SIMD inline void Divide(const float* x, const float* y, float* ratio, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) ratio[i] = y[i] == 0.0f ? 0.0f : x[i] / y[i];
}

TK_SIMD inline void Multiply(const float* x, const float* y, float* product, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) product[i] = x[i] * y[i];
}

// A step of Viterbi's: best_j = max_i (score_i + m_ij), and the first i that gives it; NaN wins.
TK_SIMD inline void BestStep(const float* score, const float* matrix, float* best, int32_t* from, int64_t rows,
                             int64_t width) {
  for (int64_t begin = 0; begin < width; begin += kLanes) {
    float largest[kLanes];
    int32_t which[kLanes];
    const float* row = matrix + begin;
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      largest[l] = score[0] + row[l];
      which[l] = 0;
    }
    for (int64_t i = 1; i < rows; ++i) {
      row += width;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const float x = score[i] + row[l];
        const bool take = (x > largest[l]) | ((x != x) & (largest[l] == largest[l]));
        largest[l] = take ? x : largest[l];
        which[l] = take ? static_cast<int32_t>(i) : which[l];
      }
    }
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      best[begin + l] = largest[l];
      from[begin + l] = which[l];
    }
  }
}

template <typename T>
TK_INLINE void Widen(const T* from, float* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = Load(from[i]);
}

template <typename T>
TK_INLINE void Narrow(const float* from, T* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = Store<T>(from[i]);
}

// One plain function per dtype: run-time dispatch needs functions, not templates.
TK_SIMD inline void ReadRow(const float* from, float* to, int64_t n) { Widen(from, to, n); }
TK_SIMD inline void ReadRow(const BFloat16* from, float* to, int64_t n) { Widen(from, to, n); }
TK_SIMD inline void ReadRow(const Half* from, float* to, int64_t n) { Widen(from, to, n); }

TK_SIMD inline void WriteRow(const float* from, float* to, int64_t n) { Narrow(from, to, n); }
TK_SIMD inline void WriteRow(const float* from, BFloat16* to, int64_t n) { Narrow(from, to, n); }
TK_SIMD inline void WriteRow(const float* from, Half* to, int64_t n) { Narrow(from, to, n); }

}  // namespace crf
}  // namespace tftoolkit

#endif  // TFTOOLKIT_CRF_LOOPS_H_
