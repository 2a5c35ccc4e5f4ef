// Loops over one row, for every dtype and instruction set. Sums are float32.

#ifndef TFTOOLKIT_EMBEDDING_BAG_ROWS_H_
#define TFTOOLKIT_EMBEDDING_BAG_ROWS_H_

#include <algorithm>
#include <cstdint>

#include "tftoolkit/float_types.h"
#include "tftoolkit/simd.h"

namespace tftoolkit {
namespace embedding_bag {

template <typename T>
TK_INLINE void AddRow(const T* row, float weight, float* sum, int64_t depth) {
#pragma omp simd
  for (int64_t i = 0; i < depth; ++i) sum[i] += weight * Load(row[i]);
}

template <typename T>
TK_INLINE void StoreSum(const float* sum, float scale, T* y, int64_t depth) {
#pragma omp simd
  for (int64_t i = 0; i < depth; ++i) y[i] = Store<T>(scale * sum[i]);
}

template <typename T>
TK_INLINE void ScaleRow(const T* dy, float scale, T* drow, int64_t depth) {
#pragma omp simd
  for (int64_t i = 0; i < depth; ++i) drow[i] = Store<T>(scale * Load(dy[i]));
}

// Blocks are added up in double, or long rows would lose a digit.
template <typename T>
TK_INLINE float DotRows(const T* a, const T* b, int64_t depth) {
  constexpr int64_t kBlock = 256;
  double total = 0;
  for (int64_t begin = 0; begin < depth; begin += kBlock) {
    const int64_t end = std::min(depth, begin + kBlock);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += Load(a[i]) * Load(b[i]);
    total += sum;
  }
  return static_cast<float>(total);
}

// The first NaN stays, else the first of the largest.
template <typename T>
TK_INLINE void MaxRow(const T* row, int32_t place, float* best, int32_t* which, int64_t depth) {
#pragma omp simd
  for (int64_t i = 0; i < depth; ++i) {
    const float x = Load(row[i]);
    const bool take = (x > best[i]) | ((x != x) & (best[i] == best[i]));
    best[i] = take ? x : best[i];
    which[i] = take ? place : which[i];
  }
}

template <typename T>
TK_INLINE void ChosenRow(const T* dy, const int32_t* which, int32_t place, T* drow, int64_t depth) {
#pragma omp simd
  for (int64_t i = 0; i < depth; ++i) drow[i] = Store<T>(which[i] == place ? Load(dy[i]) : 0.0f);
}

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_BAG_ROWS(T)                                                                                        \
  TK_SIMD inline void Add(const T* row, float weight, float* sum, int64_t n) { AddRow(row, weight, sum, n); } \
  TK_SIMD inline void Round(const float* sum, float scale, T* y, int64_t n) { StoreSum(sum, scale, y, n); }   \
  TK_SIMD inline void Scale(const T* dy, float scale, T* drow, int64_t n) { ScaleRow(dy, scale, drow, n); }   \
  TK_SIMD inline float Dot(const T* a, const T* b, int64_t n) { return DotRows(a, b, n); }                    \
  TK_SIMD inline void Max(const T* row, int32_t place, float* best, int32_t* which, int64_t n) {              \
    MaxRow(row, place, best, which, n);                                                                       \
  }                                                                                                           \
  TK_SIMD inline void Chosen(const T* dy, const int32_t* which, int32_t place, T* drow, int64_t n) {          \
    ChosenRow(dy, which, place, drow, n);                                                                     \
  }
TK_BAG_ROWS(float)
TK_BAG_ROWS(BFloat16)
TK_BAG_ROWS(Half)

// Asks for a row long before it is used: rows lie anywhere in memory, and the processor would wait for each.
inline void Prefetch(const void* row, int64_t bytes) {
  constexpr int64_t kLine = 64, kMost = 1024;  // what comes behind, the processor fetches by itself
  const char* from = static_cast<const char*>(row);
  for (int64_t at = 0; at < std::min(bytes, kMost); at += kLine) __builtin_prefetch(from + at);
}

}  // namespace embedding_bag
}  // namespace tftoolkit

#endif  // TFTOOLKIT_EMBEDDING_BAG_ROWS_H_
