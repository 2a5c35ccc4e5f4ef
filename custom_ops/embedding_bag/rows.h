// Loops over one row, for every dtype and instruction set. Sums are float32.

#ifndef TFTOOLKIT_EMBEDDING_BAG_ROWS_H_
#define TFTOOLKIT_EMBEDDING_BAG_ROWS_H_

#include <algorithm>
#include <cstdint>

#include "bags.h"
#include "tftoolkit/float_types.h"
#include "tftoolkit/simd.h"

namespace tftoolkit {
namespace embedding_bag {

// Asks for a row long before it is used: rows lie anywhere in memory, and the processor would wait for each. Into the
// second-level cache: of lines for the first, a core can ask for fewer at once.
TK_INLINE void Prefetch(const void* row, int64_t bytes) {
  constexpr int64_t kLine = 64, kMost = 1024;  // what comes behind, the processor fetches by itself
  const char* from = static_cast<const char*>(row);
  for (int64_t at = 0; at < std::min(bytes, kMost); at += kLine) __builtin_prefetch(from + at, 0, 2);
}

constexpr int64_t kAhead = 32;  // ids: as many rows as a core can ask for at once, and more

// A table and the ids that look into it.
template <typename T, typename Id>
struct Lookup {
  const T* table;
  int64_t rows, depth;
  const Id* ids;
  bool padded;
  FirstBad* bad;

  TK_INLINE bool IsRow(int64_t id) const { return id >= 0 && id < rows; }

  // Calls visit(place, row) for the ids at places [begin, end) that are rows of the table; of a row `size` elements
  // from `column` on will be used.
  template <typename Visit>
  TK_INLINE void Each(int64_t begin, int64_t end, int64_t prefetch_end, int64_t column, int64_t size,
                      const Visit& visit) const {
    for (int64_t j = begin; j < end; ++j) {
      if (const int64_t next = j + kAhead; next < prefetch_end && IsRow(ids[next])) {
        Prefetch(table + ids[next] * depth + column, size * sizeof(T));
      }
      if (const int64_t id = ids[j]; IsRow(id)) {
        visit(j, table + id * depth + column);
      } else if (!padded || id != -1) {
        bad->Note(j);
      }
    }
  }
};

constexpr int64_t kColumns = 64;  // of which the sums stay in registers

// The weighted sum of the rows with ids at [begin, end), and the sum of the weights.
template <typename T, typename Id>
TK_INLINE float SumRows(const Lookup<T, Id>& lookup, const float* weights, int64_t begin, int64_t end,
                        int64_t prefetch_end, float* sum) {
  float total = 0;
  const auto add = [&](int64_t column, int64_t size, float* sums) TK_INLINE_LAMBDA {
    total = 0;
    lookup.Each(begin, end, prefetch_end, column, size, [&](int64_t j, const T* row) TK_INLINE_LAMBDA {
      const float weight = weights ? weights[j] : 1;
      total += weight;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) sums[i] += weight * Load(row[i]);
    });
  };
  int64_t column = 0;
  for (; column + kColumns <= lookup.depth; column += kColumns) {
    float sums[kColumns] = {};
    add(column, kColumns, sums);
    std::copy_n(sums, kColumns, sum + column);
  }
  std::fill(sum + column, sum + lookup.depth, 0.0f);
  if (column < lookup.depth) add(column, lookup.depth - column, sum + column);
  return total;
}

template <typename T>
TK_INLINE void StoreSum(const float* sum, float scale, T* y, int64_t depth) {
#pragma omp simd
  for (int64_t i = 0; i < depth; ++i) y[i] = Store<T>(scale * sum[i]);
}

// The gradients of the rows with ids at [begin, end): dy times the id's weight and `scale`, zeros where there is no id.
template <typename T, typename Id>
TK_INLINE void ScaleRows(const T* dy, const Id* ids, const float* weights, float scale, int64_t begin, int64_t end,
                         T* gradients, int64_t depth) {
  for (int64_t j = begin; j < end; ++j) {
    T* const row = gradients + j * depth;
    if (ids[j] < 0) {
      std::fill_n(row, depth, Store<T>(0));
      continue;
    }
    const float factor = weights ? weights[j] * scale : scale;
#pragma omp simd
    for (int64_t i = 0; i < depth; ++i) row[i] = Store<T>(factor * Load(dy[i]));
  }
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
#define TK_BAG_IDS(T, Id)                                                                                              \
  TK_SIMD inline float Sum(const Lookup<T, Id>& lookup, const float* weights, int64_t begin, int64_t end,              \
                           int64_t prefetch_end, float* sum) {                                                         \
    return SumRows(lookup, weights, begin, end, prefetch_end, sum);                                                    \
  }                                                                                                                    \
  TK_SIMD inline void Scale(const T* dy, const Id* ids, const float* weights, float scale, int64_t begin, int64_t end, \
                            T* gradients, int64_t depth) {                                                             \
    ScaleRows(dy, ids, weights, scale, begin, end, gradients, depth);                                                  \
  }
#define TK_BAG_ROWS(T)                                                                                      \
  TK_BAG_IDS(T, int32_t)                                                                                    \
  TK_BAG_IDS(T, int64_t)                                                                                    \
  TK_SIMD inline void Round(const float* sum, float scale, T* y, int64_t n) { StoreSum(sum, scale, y, n); } \
  TK_SIMD inline float Dot(const T* a, const T* b, int64_t n) { return DotRows(a, b, n); }                  \
  TK_SIMD inline void Max(const T* row, int32_t place, float* best, int32_t* which, int64_t n) {            \
    MaxRow(row, place, best, which, n);                                                                     \
  }                                                                                                         \
  TK_SIMD inline void Chosen(const T* dy, const int32_t* which, int32_t place, T* drow, int64_t n) {        \
    ChosenRow(dy, which, place, drow, n);                                                                   \
  }
TK_BAG_ROWS(float)
TK_BAG_ROWS(BFloat16)
TK_BAG_ROWS(Half)

}  // namespace embedding_bag
}  // namespace tftoolkit

#endif  // TFTOOLKIT_EMBEDDING_BAG_ROWS_H_
