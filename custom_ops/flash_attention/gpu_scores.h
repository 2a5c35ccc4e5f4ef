// From products of queries and keys to scores, on CUDA. Scores are in units of log 2, as on the CPU.

#ifndef TFTOOLKIT_FLASH_ATTENTION_GPU_SCORES_H_
#define TFTOOLKIT_FLASH_ATTENTION_GPU_SCORES_H_

#include "gpu.h"

namespace gpu {

// A query of a head: where it lies, what it sees, and what the forward pass found.
struct Row {
  int64_t place;   // of [rows, heads]; -1: none
  int64_t bias;    // where its row of the bias begins
  int begin, end;  // the keys that it sees
  float largest, inverse, delta;
};

__device__ inline Row RowOf(const Shape& p, const Sequence& s, int64_t head, int64_t query) {
  const auto seen = p.Seen(s, query);
  return {(s.first_query + query) * p.heads + head,
          s.number * p.bias.batch + head * p.bias.head + query * p.bias.query,
          static_cast<int>(seen.first),
          static_cast<int>(seen.second),
          0,
          0,
          0};
}

__device__ inline Row NoRow() { return {-1, 0, 0, 0, 0, 0, 0}; }

// Row `row` of those that share head `kv` of k and v.
__device__ inline Row SharedRow(const Shape& p, const Sequence& s, int64_t kv, int64_t row) {
  if (row >= p.rows(s)) return NoRow();
  return RowOf(p, s, p.head(s, kv, row), row % s.queries);
}

struct Range {
  int64_t begin, end;
};

// The keys that any of the queries [from, to) sees: what they see moves on with them.
__device__ inline Range SeenBy(const Shape& p, const Sequence& s, int64_t from, int64_t to) {
  return {p.Seen(s, from).first, p.Seen(s, to - 1).second};
}

// The same of the rows [from, to) that share a head; some more where they are of two heads of q.
__device__ inline Range SeenByRows(const Shape& p, const Sequence& s, int64_t from, int64_t to) {
  if (from / s.queries != (to - 1) / s.queries) return SeenBy(p, s, 0, s.queries);
  return SeenBy(p, s, from % s.queries, (to - 1) % s.queries + 1);
}

// The score of a product, and what its gradient is multiplied by to be the product's (before the scale). Nothing here
// may be contracted with its neighbours: the backward pass must find the forward pass's scores bit for bit.
template <typename T>
__device__ __forceinline__ float Score(const Common& c, const Row& row, int key, float product, float* slope) {
  if (key < row.begin || key >= row.end) return MinusInfinity();
  float score = __fmul_rn(product, c.factor);
  if (c.cap > 0) {
    const float t = tanhf(score);
    *slope = 1.0f - t * t;
    score = __fmul_rn(t, c.cap);
  }
  const T* bias = static_cast<const T*>(c.shape.bias.data);
  if (bias != nullptr) score = __fadd_rn(score, __fmul_rn(Load(bias[row.bias + key]), kLog2E));
  return score;
}

// The weight of a key, and from the gradient by it that by the score.
template <typename T>
__device__ __forceinline__ float Weight(const Common& c, const Row& row, int key, float product, float* gradient,
                                        float* slope) {
  *slope = 1.0f;
  const float weight = exp2f(__fadd_rn(Score<T>(c, row, key, product, slope), -row.largest)) * row.inverse;
  *gradient = weight * (*gradient - row.delta);
  return weight;
}

// The keys that the 16 rows of the calling warp see, of the tile of `count` rows from `first` on.
__device__ inline Range SeenByWarp(const Shape& p, const Sequence& s, int64_t first, int64_t count) {
  const int64_t begin = threadIdx.x / kWarp * 16;
  if (begin >= count) return {0, 0};
  return SeenByRows(p, s, first + begin, first + min(begin + 16, count));
}

// Of a query with `sum` relative to its largest score, what is kept of it, if it is for this thread to `store`; returns
// 1 / sum, which is 0 where nothing is seen.
__device__ __forceinline__ float StoreStats(const Outputs& outputs, int64_t place, float largest, float sum,
                                            bool store) {
  const bool empty = sum == 0;
  const float inverse = empty ? 0.0f : 1.0f / sum;
  if (!store) return inverse;
  outputs.largest[place] = empty ? 0.0f : sum == sum ? largest : sum;  // NaN if a score is
  outputs.inverse[place] = inverse;
  if (outputs.lse != nullptr) outputs.lse[place] = empty ? MinusInfinity() : largest * kLn2 + logf(sum);
  return inverse;
}

}  // namespace gpu

#endif  // TFTOOLKIT_FLASH_ATTENTION_GPU_SCORES_H_
