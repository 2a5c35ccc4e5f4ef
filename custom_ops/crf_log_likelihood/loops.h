// Loops over the states of a step, for every instruction set. Rows have a multiple of kLanes numbers, in
// double.

#ifndef TFTOOLKIT_CRF_LOOPS_H_
#define TFTOOLKIT_CRF_LOOPS_H_

#include <cstdint>

#include "tftoolkit/float_types.h"
#include "tftoolkit/math.h"
#include "tftoolkit/simd.h"

namespace tftoolkit {
namespace crf {

constexpr int64_t kLanes = 8;

inline int64_t Padded(int64_t states) { return (states + kLanes - 1) / kLanes * kLanes; }

// y_j = sum_i x_i m_ij, of a matrix with `rows` rows; four at a time, since y is read and written for each.
TK_SIMD inline void Product(const double* x, const double* matrix, double* y, int64_t rows, int64_t width) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) y[j] = 0;
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const double *a = matrix + i * width, *b = a + width, *c = b + width, *d = c + width;
    const double xa = x[i], xb = x[i + 1], xc = x[i + 2], xd = x[i + 3];
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) y[j] += (xa * a[j] + xb * b[j]) + (xc * c[j] + xd * d[j]);
  }
  for (; i < rows; ++i) {
    const double *a = matrix + i * width, xa = x[i];
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) y[j] += xa * a[j];
  }
}

// m_ij += x_i y_j
TK_SIMD inline void AddOuter(const double* x, const double* y, double* matrix, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i, matrix += width) {
    const double xi = x[i];
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) matrix[j] += xi * y[j];
  }
}

// The largest; of NaN nobody knows.
TK_SIMD inline double Largest(const double* x, int64_t n) {
  double largest = -__builtin_huge_val();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

TK_SIMD inline double Smallest(const double* x, int64_t n) {
  double smallest = __builtin_huge_val();
#pragma omp simd reduction(min : smallest)
  for (int64_t i = 0; i < n; ++i) smallest = x[i] < smallest ? x[i] : smallest;
  return smallest;
}

// x -= shift, and e^x.
TK_SIMD inline void ShiftAndExp(double* x, double shift, double* power, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    x[i] -= shift;
    power[i] = WideExp(x[i]);
  }
}

TK_SIMD inline void AddLog(const double* logits, const double* top, const double* sum, double* next, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) next[i] = logits[i] + (top[i] + WideLog(sum[i]));
}

// x / y, where y is not 0.
TK_SIMD inline void Divide(const double* x, const double* y, double* ratio, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) ratio[i] = y[i] == 0.0 ? 0.0 : x[i] / y[i];
}

TK_SIMD inline void Multiply(const double* x, const double* y, double* product, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) product[i] = x[i] * y[i];
}

// A step of Viterbi's: best_j = max_i (score_i + m_ij), and the first i that gives it; NaN wins.
TK_SIMD inline void BestStep(const double* score, const double* matrix, double* best, int64_t* from, int64_t rows,
                             int64_t width) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    best[j] = -__builtin_huge_val();
    from[j] = 0;
  }
  for (int64_t i = 0; i < rows; ++i, matrix += width) {
    const double here = score[i];
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const double x = here + matrix[j], largest = best[j];
      const bool take = (x > largest) | ((x != x) & (largest == largest));
      best[j] = take ? x : largest;
      from[j] = take ? i : from[j];
    }
  }
}

template <typename T>
TK_INLINE void Widen(const T* from, double* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = Load(from[i]);
}

template <typename T>
TK_INLINE void Narrow(const double* from, T* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = Store<T>(static_cast<float>(from[i]));
}

// One plain function per dtype: run-time dispatch needs functions, not templates.
TK_SIMD inline void ReadRow(const float* from, double* to, int64_t n) { Widen(from, to, n); }
TK_SIMD inline void ReadRow(const BFloat16* from, double* to, int64_t n) { Widen(from, to, n); }
TK_SIMD inline void ReadRow(const Half* from, double* to, int64_t n) { Widen(from, to, n); }

TK_SIMD inline void WriteRow(const double* from, float* to, int64_t n) { Narrow(from, to, n); }
TK_SIMD inline void WriteRow(const double* from, BFloat16* to, int64_t n) { Narrow(from, to, n); }
TK_SIMD inline void WriteRow(const double* from, Half* to, int64_t n) { Narrow(from, to, n); }

}  // namespace crf
}  // namespace tftoolkit

#endif  // TFTOOLKIT_CRF_LOOPS_H_
