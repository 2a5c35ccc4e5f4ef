// What attention is asked to compute, for the kernels of every instruction set and of CUDA.

#ifndef TFTOOLKIT_FLASH_ATTENTION_PROBLEM_H_
#define TFTOOLKIT_FLASH_ATTENTION_PROBLEM_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "tftoolkit/float_types.h"

namespace tftoolkit {
namespace attention {

using Type = FloatType;

// One sequence of queries over one of keys.
struct Sequence {
  int64_t queries, keys;
  int64_t valid;                   // of the keys; those behind are not looked at
  int64_t first_query, first_key;  // where its rows begin in q and in k
  int64_t number;                  // for the bias
};

// Added to the scores: strides are 0 where it is broadcast; keys are contiguous.
struct Bias {
  const void* data = nullptr;
  int64_t batch = 0, head = 0, query = 0;
};

// q is [rows, heads, depth], k [rows, kv_heads, depth], v [rows, kv_heads, value_depth]: heads lie side by side, and
// heads / kv_heads of q share one of k and v. All queries that share one are the *rows* of a task, head by head.
struct Shape {
  Type type;
  const void* q;
  const void* k;
  const void* v;
  Bias bias;
  int64_t heads, kv_heads, depth, value_depth;
  bool causal;
  int64_t window;  // 0: none
  float scale, softcap;

  // constexpr: so that CUDA's kernels may call them.
  constexpr int64_t group() const { return heads / std::max<int64_t>(1, kv_heads); }
  constexpr int64_t rows(const Sequence& s) const { return group() * s.queries; }
  constexpr int64_t head(const Sequence& s, int64_t kv, int64_t row) const { return kv * group() + row / s.queries; }
  // Of [rows, heads]: times a depth, where the row's vector lies in q or in the output.
  constexpr int64_t place(const Sequence& s, int64_t kv, int64_t row) const {
    return (s.first_query + row % s.queries) * heads + head(s, kv, row);
  }
  constexpr int64_t kv_place(const Sequence& s, int64_t kv, int64_t key) const {
    return (s.first_key + key) * kv_heads + kv;
  }

  // The keys that a query may see: begin, and the end behind them, which is no smaller. The last query stands at the
  // last key.
  constexpr std::pair<int64_t, int64_t> Seen(const Sequence& s, int64_t query) const {
    const int64_t place = query + s.keys - s.queries;
    int64_t begin = 0, end = s.valid;
    if (causal) end = std::min(end, place + 1);
    if (window > 0) {
      const int64_t reach = std::min(window, s.keys + s.queries);  // a sum with the largest number would overflow
      begin = std::max(begin, place - reach + 1);
      if (!causal) end = std::min(end, place + reach);
    }
    begin = std::min(begin, s.valid);
    return {begin, std::max(begin, end)};
  }
};

struct Problem : Shape {
  std::vector<Sequence> sequences;
};

// Outputs of the forward pass. Queries that see no key have zeros, 0 for the largest score and for 1 / sum.
struct Outputs {
  void* o;
  float *largest, *inverse, *lse;  // lse may be null
};

// Inputs and outputs of the backward pass.
struct Gradients {
  int64_t rows;  // queries times heads, of the next
  const void *o, *d_o;
  const float* dlse;  // may be null
  const float *largest, *inverse;
  const float* delta;  // sum(dO * O) - dLSE of each of the rows
  void *dk, *dv;
  float* dbias;  // like the bias, or null
};

}  // namespace attention
}  // namespace tftoolkit

#endif  // TFTOOLKIT_FLASH_ATTENTION_PROBLEM_H_
