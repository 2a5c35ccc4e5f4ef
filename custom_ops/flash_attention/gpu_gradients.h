// What the kernels of the backward pass on CUDA have in common: tiles in shared memory, gradients by scores.

#ifndef TFTOOLKIT_FLASH_ATTENTION_GPU_GRADIENTS_H_
#define TFTOOLKIT_FLASH_ATTENTION_GPU_GRADIENTS_H_

#include "gpu_scores.h"
#include "gpu_tiles.h"

namespace gpu {

// Tiles of the three kernels: a pair that the block keeps (of q and d_o, or of k and v), with 16 rows for each warp,
// and pairs of the others that go by.
template <typename T, int kDepth>
struct Backward {
  static constexpr int kWarps = !kOnTensorCores<T> && kDepth > 128 ? 2 : 4;
  static constexpr int kRows = 16 * kWarps, kThreads = kWarp * kWarps;
  static constexpr int kOthers = kOnTensorCores<T> ? (kDepth > 64 ? 32 : 64) : (kDepth > 128 ? 16 : 32);
  static constexpr int kSteps = kOthers / 8, kStep = kStride<T, kDepth>;
  static constexpr int kKept = kRows * kStep, kOther = kOthers * kStep;
  using Products = float[kSteps][4];

  struct alignas(16) Memory {
    T kept[2][kKept];
    T stages[2][2][kOther];
    float exchange[kWarps][kExchange<T, kOthers> + 1];  // no array may be empty
    Row rows[2][kOthers];
  };

  static __device__ Memory& Shared() {
    extern __shared__ __align__(16) unsigned char memory[];
    return *reinterpret_cast<Memory*>(memory);
  }

  // kCount keys and values from `key` on; zeros for those that are not within `seen`: zero times NaN is NaN.
  template <int kCount>
  static __device__ __forceinline__ void LoadKeys(T* k, T* v, const BackwardCall& call, const Sequence& s, int64_t kv,
                                                  int64_t key, const Range& seen) {
    const Common& c = call.common;
    const int64_t first = c.shape.kv_place(s, kv, key), heads = c.shape.kv_heads;
    const int depth = c.shape.depth, value_depth = c.shape.value_depth;
    LoadTile<T, kCount, kDepth, kThreads>(k, static_cast<const T*>(c.shape.k), depth, c.k_aligned, seen.begin - key,
                                          seen.end - key, [=](int row) { return (first + row * heads) * depth; });
    LoadTile<T, kCount, kDepth, kThreads>(v, static_cast<const T*>(c.shape.v), value_depth, c.v_aligned,
                                          seen.begin - key, seen.end - key,
                                          [=](int row) { return (first + row * heads) * value_depth; });
  }

  // The first `count` of kCount rows of q and d_o, of which place(row) says where they lie.
  template <int kCount, typename Place>
  static __device__ __forceinline__ void LoadQueries(T* q, T* d_o, const BackwardCall& call, int64_t count,
                                                     const Place& place) {
    const Shape& p = call.common.shape;
    LoadTile<T, kCount, kDepth, kThreads>(q, static_cast<const T*>(p.q), p.depth, call.common.q_aligned, 0, count,
                                          [&](int row) { return place(row) * p.depth; });
    LoadTile<T, kCount, kDepth, kThreads>(d_o, static_cast<const T*>(call.in.d_o), p.value_depth, call.d_o_aligned, 0,
                                          count, [&](int row) { return place(row) * p.value_depth; });
  }

  static __device__ Row WithStats(const BackwardCall& call, Row row) {
    if (row.place < 0) return row;
    row.largest = call.in.largest[row.place];
    row.inverse = call.in.inverse[row.place];
    row.delta = call.in.delta[row.place];
    return row;
  }

  // The gradients by the scores of the warp's 16 queries and kOthers keys, or, with `through_cap`, by the products.
  static __device__ __forceinline__ void ScoreGradients(const BackwardCall& call, const Row (&rows)[2], int key,
                                                        const T* q, const T* d_o, const T* k, const T* v,
                                                        bool through_cap, Products& gradients) {
    const Shape& p = call.common.shape;
    Products scores = {};
    MultiplyTransposed<T, kOthers, kDepth>(q + Warp() * 16 * kStep, k, p.depth, scores);
    MultiplyTransposed<T, kOthers, kDepth>(d_o + Warp() * 16 * kStep, v, p.value_depth, gradients);
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float slope;
        Weight<T>(call.common, rows[e / 2], key + 8 * j + Pair() + e % 2, scores[j][e], &gradients[j][e], &slope);
        if (through_cap) gradients[j][e] *= slope;
      }
    }
  }

  // Two rows of this lane's products, times `scale`, to the rows of `to` that begin at at[0] and at[1]; -1: none.
  template <int kColumns>
  static __device__ __forceinline__ void StoreRows(const float (&c)[kColumns / 8][4], float scale, int columns,
                                                   const int64_t (&at)[2], T* to) {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 8 * j + Pair() + e % 2;
        if (at[e / 2] >= 0 && column < columns) to[at[e / 2] + column] = Store<T>(c[j][e] * scale);
      }
    }
  }
};

}  // namespace gpu

#endif  // TFTOOLKIT_FLASH_ATTENTION_GPU_GRADIENTS_H_
