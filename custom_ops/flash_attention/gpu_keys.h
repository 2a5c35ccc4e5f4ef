// dk and dv on CUDA; see flash_attention.cu.

#ifndef TFTOOLKIT_FLASH_ATTENTION_GPU_KEYS_H_
#define TFTOOLKIT_FLASH_ATTENTION_GPU_KEYS_H_

#include "gpu_gradients.h"

namespace gpu {

// dk and dv of a tile of keys, over all queries of all heads that share them: S^T and dS^T, with keys as rows.
template <typename T, int kDepth>
struct KeysPass : Backward<T, kDepth> {
  using B = Backward<T, kDepth>;
  static constexpr int kColumns = kDepth > 128 ? 128 : kDepth;  // for which a thread's registers suffice

  // A tile of queries of one of the heads that share the keys.
  struct Place {
    int64_t head, query;
  };

  // From `place` on, the first that sees one of the keys.
  static __device__ Place Seeing(const Shape& p, const Sequence& s, const Range& keys, Place place) {
    for (; place.head < p.group(); ++place.head, place.query = 0) {
      for (; place.query < s.queries; place.query += B::kOthers) {
        const Range seen = SeenBy(p, s, place.query, min(place.query + B::kOthers, s.queries));
        if (max(seen.begin, keys.begin) < min(seen.end, keys.end)) return place;
      }
    }
    return place;
  }

  static __device__ __forceinline__ void LoadStage(const BackwardCall& call, const Sequence& s, int64_t kv, Place at,
                                                   T (&stage)[2][B::kOther], Row (&rows)[B::kOthers]) {
    const Shape& p = call.common.shape;
    const int64_t head = kv * p.group() + at.head, count = s.queries - at.query;
    const int64_t first = (s.first_query + at.query) * p.heads + head, heads = p.heads;
    B::template LoadQueries<B::kOthers>(stage[0], stage[1], call, count, [=](int row) { return first + row * heads; });
    for (int i = threadIdx.x; i < B::kOthers; i += B::kThreads) {
      rows[i] = i < count ? B::WithStats(call, RowOf(p, s, head, at.query + i)) : NoRow();
    }
  }

  static __device__ void Run(const BackwardCall& call, const Tiling& tiling, int slices, int64_t index) {
    auto& memory = B::Shared();
    const Shape& p = call.common.shape;
    const int64_t tiles = tiling.tiles(), kv = index / slices / tiles;
    const int first_column = static_cast<int>(index % slices) * kColumns;
    int64_t first_key;
    const Sequence s = call.common.all.At(tiling.Find(index / slices % tiles, &first_key));
    const int64_t count = min(int64_t{B::kRows}, s.keys - first_key);
    if (count <= 0) return;
    float dk[kColumns / 8][4] = {}, dv[kColumns / 8][4] = {};
    Range keys = {0, 0};
    if (p.rows(s) > 0) {
      keys = SeenBy(p, s, 0, s.queries);
      keys = {max(keys.begin, first_key), min(keys.end, first_key + count)};
      Place place = Seeing(p, s, keys, {0, 0});
      if (place.head < p.group()) {
        B::template LoadKeys<B::kRows>(memory.kept[0], memory.kept[1], call, s, kv, first_key, keys);
        LoadStage(call, s, kv, place, memory.stages[0], memory.rows[0]);
      }
      tftoolkit::CommitCopies();
      for (int stage = 0; place.head < p.group(); stage ^= 1) {
        place = Seeing(p, s, keys, {place.head, place.query + B::kOthers});
        if (place.head < p.group()) {
          LoadStage(call, s, kv, place, memory.stages[stage ^ 1], memory.rows[stage ^ 1]);
        }
        tftoolkit::CommitCopies();
        tftoolkit::WaitForCopies<1>();
        __syncthreads();
        Add(call, static_cast<int>(first_key), first_column, stage, dk, dv);
        __syncthreads();  // before the stage is loaded anew
      }
    }
    int64_t k_at[2], v_at[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = Warp() * 16 + Group() + 8 * i;
      const int64_t at = p.kv_place(s, kv, first_key + row);
      k_at[i] = row < count ? at * p.depth + first_column : -1;
      v_at[i] = row < count ? at * p.value_depth + first_column : -1;
      if (first_key + row >= keys.begin && first_key + row < keys.end) continue;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {  // nobody sees it: zeros, also where a query is NaN
        dk[j][2 * i] = dk[j][2 * i + 1] = dv[j][2 * i] = dv[j][2 * i + 1] = 0;
      }
    }
    B::template StoreRows<kColumns>(dk, p.scale, p.depth - first_column, k_at, static_cast<T*>(call.in.dk));
    B::template StoreRows<kColumns>(dv, 1.0f, p.value_depth - first_column, v_at, static_cast<T*>(call.in.dv));
  }

  // What the queries of a stage add.
  static __device__ __forceinline__ void Add(const BackwardCall& call, int first_key, int first_column, int stage,
                                             float (&dk)[kColumns / 8][4], float (&dv)[kColumns / 8][4]) {
    auto& memory = B::Shared();
    const Shape& p = call.common.shape;
    const T *q = memory.stages[stage][0], *d_o = memory.stages[stage][1];
    typename B::Products weights = {}, gradients = {};
    MultiplyTransposed<T, B::kOthers, kDepth>(memory.kept[0] + Warp() * 16 * B::kStep, q, p.depth, weights);
    MultiplyTransposed<T, B::kOthers, kDepth>(memory.kept[1] + Warp() * 16 * B::kStep, d_o, p.value_depth, gradients);
#pragma unroll
    for (int j = 0; j < B::kSteps; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Row& row = memory.rows[stage][8 * j + Pair() + e % 2];
        const int key = first_key + Warp() * 16 + Group() + e / 2 * 8;
        float slope;
        weights[j][e] = Weight<T>(call.common, row, key, weights[j][e], &gradients[j][e], &slope);
        gradients[j][e] *= slope;
      }
    }
    float* exchange = memory.exchange[Warp()];
    MultiplyWeights<T, B::kOthers, kColumns, kDepth>(weights, d_o + first_column, p.value_depth - first_column, dv,
                                                     exchange);
    MultiplyWeights<T, B::kOthers, kColumns, kDepth>(gradients, q + first_column, p.depth - first_column, dk, exchange);
  }
};

}  // namespace gpu

#endif  // TFTOOLKIT_FLASH_ATTENTION_GPU_KEYS_H_
