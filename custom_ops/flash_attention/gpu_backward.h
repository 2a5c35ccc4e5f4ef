// The backward pass on CUDA, after delta: one kernel each for dk and dv, dq, and the bias' gradient; see
// flash_attention.cu.

#ifndef TFTOOLKIT_FLASH_ATTENTION_GPU_BACKWARD_H_
#define TFTOOLKIT_FLASH_ATTENTION_GPU_BACKWARD_H_

#include "gpu_scores.h"
#include "gpu_tiles.h"
#include "tftoolkit/grid.h"

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
    if (p.rows(s) > 0) {
      Range keys = SeenBy(p, s, 0, s.queries);
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
    for (int i = 0; i < 2; ++i) {
      const int row = Warp() * 16 + Group() + 8 * i;
      const int64_t at = p.kv_place(s, kv, first_key + row);
      k_at[i] = row < count ? at * p.depth + first_column : -1;
      v_at[i] = row < count ? at * p.value_depth + first_column : -1;
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

// dq of a tile of the rows that share a head of k and v, over all keys.
template <typename T, int kDepth>
struct QueriesPass : Backward<T, kDepth> {
  using B = Backward<T, kDepth>;

  static __device__ void Run(const BackwardCall& call, const Tiling& tiling, int64_t index) {
    auto& memory = B::Shared();
    const Shape& p = call.common.shape;
    const int64_t tiles = tiling.tiles(), kv = index / tiles;
    int64_t first_row;
    const Sequence s = call.common.all.At(tiling.Find(index % tiles, &first_row));
    const int64_t count = min(int64_t{B::kRows}, p.rows(s) - first_row);
    if (count <= 0) return;
    Row rows[2];
    for (int i = 0; i < 2; ++i) {
      const int row = Warp() * 16 + Group() + 8 * i;
      rows[i] = row < count ? B::WithStats(call, SharedRow(p, s, kv, first_row + row)) : NoRow();
    }
    const Range seen = SeenByRows(p, s, first_row, first_row + count);
    const Range own = SeenByWarp(p, s, first_row, count);
    float dq[kDepth / 8][4] = {};
    if (seen.begin < seen.end) {
      B::template LoadQueries<B::kRows>(memory.kept[0], memory.kept[1], call, count,
                                        [&](int row) { return p.place(s, kv, first_row + row); });
      auto& first = memory.stages[0];
      B::template LoadKeys<B::kOthers>(first[0], first[1], call, s, kv, seen.begin, seen);
    }
    tftoolkit::CommitCopies();
    int stage = 0;
    for (int64_t key = seen.begin; key < seen.end; key += B::kOthers, stage ^= 1) {
      auto &here = memory.stages[stage], &next = memory.stages[stage ^ 1];
      if (key + B::kOthers < seen.end) {
        B::template LoadKeys<B::kOthers>(next[0], next[1], call, s, kv, key + B::kOthers, seen);
      }
      tftoolkit::CommitCopies();
      tftoolkit::WaitForCopies<1>();
      __syncthreads();
      if (key < own.end && key + B::kOthers > own.begin) {
        typename B::Products gradients = {};
        B::ScoreGradients(call, rows, static_cast<int>(key), memory.kept[0], memory.kept[1], here[0], here[1], true,
                          gradients);
        MultiplyWeights<T, B::kOthers, kDepth, kDepth>(gradients, here[0], p.depth, dq, memory.exchange[Warp()]);
      }
      __syncthreads();  // before the stage is loaded anew
    }
    const int64_t at[2] = {rows[0].place < 0 ? -1 : rows[0].place * p.depth,
                           rows[1].place < 0 ? -1 : rows[1].place * p.depth};
    B::template StoreRows<kDepth>(dq, p.scale, p.depth, at, static_cast<T*>(call.dq));
  }
};

// The bias' gradient, for a tile of its queries (or its only one) and keys: the sum over all that it was broadcast
// along, sequence by sequence, head by head, query by query.
template <typename T, int kDepth>
struct BiasPass : Backward<T, kDepth> {
  using B = Backward<T, kDepth>;

  static __device__ __host__ int64_t RowTiles(const BackwardCall& call) {
    return (call.bias_queries + B::kRows - 1) / B::kRows;
  }
  static __device__ __host__ int64_t KeyTiles(const BackwardCall& call) {
    return (call.common.all.keys + B::kOthers - 1) / B::kOthers;
  }

  static __device__ void Run(const BackwardCall& call, int64_t index) {
    const Sequences& all = call.common.all;
    const int64_t key = index % KeyTiles(call) * B::kOthers, place = index / KeyTiles(call);
    const int64_t row = place % RowTiles(call) * B::kRows, vector = place / RowTiles(call);
    const int64_t head = vector % call.bias_heads, batch = vector / call.bias_heads;
    const bool over_batch = call.bias_batch == 1, over_heads = call.bias_heads == 1, over_rows = call.bias_queries == 1;
    typename B::Products sums = {};
    for (int64_t b = over_batch ? 0 : batch; b < (over_batch ? all.count : batch + 1); ++b) {
      for (int64_t h = over_heads ? 0 : head; h < (over_heads ? call.common.shape.heads : head + 1); ++h) {
        const int64_t end = over_rows ? all.queries : min(row + B::kRows, all.queries);
        for (int64_t query = over_rows ? 0 : row; query < end; query += B::kRows) {
          AddTile(call, all.At(b), h, query, key, sums);
        }
      }
    }
    T* to = static_cast<T*>(call.dbias) + vector * call.bias_queries * all.keys + key;
    const int columns = static_cast<int>(min(int64_t{B::kOthers}, all.keys - key));
    if (over_rows) {
      StoreSum(sums, columns, to);
      return;
    }
    int64_t at[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t own = row + Warp() * 16 + Group() + 8 * i;
      at[i] = own < call.bias_queries ? own * all.keys : -1;
    }
    B::template StoreRows<B::kOthers>(sums, 1.0f, columns, at, to);
  }

  static __device__ __forceinline__ void AddTile(const BackwardCall& call, const Sequence& s, int64_t head,
                                                 int64_t query, int64_t key, typename B::Products& sums) {
    auto& memory = B::Shared();
    const Shape& p = call.common.shape;
    const int64_t count = min(int64_t{B::kRows}, s.queries - query);
    Range seen = SeenBy(p, s, query, query + count);
    seen = {max(seen.begin, key), min(seen.end, key + B::kOthers)};
    if (seen.begin >= seen.end) return;
    const int64_t first = (s.first_query + query) * p.heads + head, heads = p.heads;
    B::template LoadQueries<B::kRows>(memory.kept[0], memory.kept[1], call, count,
                                      [=](int row) { return first + row * heads; });
    auto& keys = memory.stages[0];
    B::template LoadKeys<B::kOthers>(keys[0], keys[1], call, s, head / p.group(), key, seen);
    tftoolkit::CommitCopies();
    Row rows[2];
    for (int i = 0; i < 2; ++i) {
      const int row = Warp() * 16 + Group() + 8 * i;
      rows[i] = row < count ? B::WithStats(call, RowOf(p, s, head, query + row)) : NoRow();
    }
    tftoolkit::WaitForCopies<0>();
    __syncthreads();
    typename B::Products gradients = {};
    B::ScoreGradients(call, rows, static_cast<int>(key), memory.kept[0], memory.kept[1], keys[0], keys[1], false,
                      gradients);
#pragma unroll
    for (int j = 0; j < B::kSteps; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[j][e] += gradients[j][e];
    }
    __syncthreads();  // before the tiles are loaded anew
  }

  // The sum of the block's rows, in one.
  static __device__ __forceinline__ void StoreSum(const typename B::Products& sums, int columns, T* to) {
    __shared__ float parts[B::kWarps][B::kOthers];
#pragma unroll
    for (int j = 0; j < B::kSteps; ++j) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        float sum = sums[j][x] + sums[j][2 + x];
        for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        if (Group() == 0) parts[Warp()][8 * j + Pair() + x] = sum;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += B::kThreads) {
      float sum = 0;
      for (int warp = 0; warp < B::kWarps; ++warp) sum += parts[warp][i];
      to[i] = Store<T>(sum);
    }
    __syncthreads();  // before the array is used again
  }
};

template <typename T, int kDepth>
__global__ void __launch_bounds__(Backward<T, kDepth>::kThreads)
    KeysKernel(BackwardCall call, Tiling tiling, int slices, int64_t work) {
  // The first tiles first: with a causal mask they are seen by the most.
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) KeysPass<T, kDepth>::Run(call, tiling, slices, i);
}

template <typename T, int kDepth>
__global__ void __launch_bounds__(Backward<T, kDepth>::kThreads)
    QueriesKernel(BackwardCall call, Tiling tiling, int64_t work) {
  for (int64_t i = work - 1 - blockIdx.x; i >= 0; i -= gridDim.x) QueriesPass<T, kDepth>::Run(call, tiling, i);
}

template <typename T, int kDepth>
__global__ void __launch_bounds__(Backward<T, kDepth>::kThreads, 1) BiasKernel(BackwardCall call, int64_t work) {
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) BiasPass<T, kDepth>::Run(call, i);
}

template <typename T, int kDepth>
cudaError_t LaunchBackwardOfDepth(cudaStream_t stream, const BackwardCall& call) {
  using B = Backward<T, kDepth>;
  constexpr size_t kBytes = sizeof(typename B::Memory);
  const Shape& p = call.common.shape;
  cudaError_t error = cudaSuccess;
  const auto launch = [&](auto kernel, int64_t work, auto... arguments) {
    if (work == 0 || error != cudaSuccess) return;
    if (error = AllowShared(kernel, kBytes); error != cudaSuccess) return;
    kernel<<<tftoolkit::GridBlocks(work, INT32_MAX), B::kThreads, kBytes, stream>>>(call, arguments..., work);
    error = cudaGetLastError();
  };
  const Tiling keys = KeyTiles(call.common.all, B::kRows);
  const Tiling rows = QueryTiles(call.common.all, p.group(), B::kRows);
  constexpr int kColumns = KeysPass<T, kDepth>::kColumns;
  const int slices = std::max<int64_t>(1, (std::max(p.depth, p.value_depth) + kColumns - 1) / kColumns);
  launch(KeysKernel<T, kDepth>, keys.tiles() * p.kv_heads * slices, keys, slices);
  launch(QueriesKernel<T, kDepth>, rows.tiles() * p.kv_heads, rows);
  if (call.dbias != nullptr) {
    using Pass = BiasPass<T, kDepth>;
    const int64_t vectors = call.bias_batch * call.bias_heads;
    launch(BiasKernel<T, kDepth>, vectors * Pass::RowTiles(call) * Pass::KeyTiles(call));
  }
  return error;
}

template <typename T>
cudaError_t LaunchBackward(cudaStream_t stream, const BackwardCall& call) {
  return WithDepth(call.common.shape,
                   [&](auto depth) { return LaunchBackwardOfDepth<T, decltype(depth)::value>(stream, call); });
}

}  // namespace gpu

#endif  // TFTOOLKIT_FLASH_ATTENTION_GPU_BACKWARD_H_
