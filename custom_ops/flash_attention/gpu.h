// What CUDA's kernels get, who launches them, and how a block finds its share of the work.

#ifndef TFTOOLKIT_FLASH_ATTENTION_GPU_H_
#define TFTOOLKIT_FLASH_ATTENTION_GPU_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "problem.h"

namespace gpu {

using namespace tftoolkit::attention;

constexpr int kWarp = 32;
constexpr int kWarps = 4;  // of a block of the forward pass; each has 16 rows
constexpr int kForwardRows = 16 * kWarps;
constexpr int64_t kMostDepth = 256;
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

__device__ inline float Load(float value) { return value; }
__device__ inline float Load(__half value) { return __half2float(value); }
__device__ inline float Load(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ T Store(float value);
template <>
__device__ inline float Store<float>(float value) {
  return value;
}
template <>
__device__ inline __half Store<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 Store<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

__device__ inline float MinusInfinity() { return __uint_as_float(0xff800000u); }

// Where the sequences lie, as a kernel looks it up.
struct Sequences {
  int64_t count;
  int64_t queries, keys;                 // of each; of all of them where they are packed
  const int32_t* lengths;                // may be null
  const int32_t *q_borders, *k_borders;  // null unless they are packed

  __device__ Sequence At(int64_t i) const {
    if (q_borders == nullptr) return {queries, keys, lengths == nullptr ? keys : lengths[i], i * queries, i * keys, i};
    const int64_t own = k_borders[i + 1] - k_borders[i];
    return {q_borders[i + 1] - q_borders[i], own, own, q_borders[i], k_borders[i], i};
  }
};

// Rows (of q or of k, `per` for each of theirs) cut into tiles of `size`, of which none reaches into two sequences.
// Packed sequences need no table: the tiles of sequence i have the numbers from (its first row) / size + i on, which
// leaves room enough before those of the next. A few numbers stand for no tile.
struct Tiling {
  const int32_t* borders;  // null unless packed
  int64_t count, length;   // of sequences; of each, or of all together where they are packed
  int64_t per, size;

  __host__ __device__ int64_t tiles() const {
    return borders != nullptr ? length * per / size + count : count * ((length * per + size - 1) / size);
  }

  __device__ int64_t First(int64_t i) const { return borders[i] * per / size + i; }

  // The sequence of a tile; `begin` is the tile's first row in it, which may lie behind its end.
  __device__ int64_t Find(int64_t tile, int64_t* begin) const {
    if (borders == nullptr) {
      const int64_t each = (length * per + size - 1) / size;
      *begin = tile % each * size;
      return tile / each;
    }
    int64_t low = 0, high = count - 1;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (First(middle) <= tile) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    *begin = (tile - First(low)) * size;
    return low;
  }
};

inline Tiling QueryTiles(const Sequences& all, int64_t per, int64_t size) {
  return {all.q_borders, all.count, all.queries, per, size};
}
inline Tiling KeyTiles(const Sequences& all, int64_t size) { return {all.k_borders, all.count, all.keys, 1, size}; }

// A problem, and which of its tensors may be copied in pieces of 16 bytes.
struct Common {
  Shape shape;
  Sequences all;
  bool q_aligned, k_aligned, v_aligned;
  float factor;  // from a product to a score in units of log 2, or to what softcap's tanh is of
  float cap;     // in the same units; 0: none
};

// Keys are cut into `splits` parts of `part`. Where there are several, what each has seen (see Outputs) goes to
// `partial`, and a second kernel puts it together.
struct ForwardCall {
  Common common;
  Outputs outputs;
  int64_t splits, part;
  int64_t places;  // queries times heads
  float* partial;  // [splits][places][value_depth + 2]: sums of values, then the largest score and the sum
};

struct BackwardCall {
  Common common;
  bool d_o_aligned;
  Gradients in;  // dbias is not used
  void* dq;
  void* dbias;                                   // may be null
  int64_t bias_batch, bias_heads, bias_queries;  // its dimensions
};

// In the files of the three dtypes.
template <typename T>
cudaError_t LaunchForward(cudaStream_t stream, const ForwardCall& call);
template <typename T>
cudaError_t LaunchBackward(cudaStream_t stream, const BackwardCall& call);

// run(std::integral_constant<int, N>()) with the depth that kernels are compiled for. The third one is the last.
template <typename Run>
cudaError_t WithDepth(const Shape& p, const Run& run) {
  const int64_t depth = std::max(p.depth, p.value_depth);
  if (depth <= 64) return run(std::integral_constant<int, 64>());
  if (depth <= 128) return run(std::integral_constant<int, 128>());
  return run(std::integral_constant<int, kMostDepth>());
}

// More than 48 KiB of shared memory must be asked for.
template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, size_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace gpu

#endif  // TFTOOLKIT_FLASH_ATTENTION_GPU_H_
