// Tiles in shared memory and a warp's products of them.
//
// A warp has 16 rows of a product and holds it as the tensor cores do (see tftoolkit/tensor_core.h): with group = lane
// / 4 and pair = 2 * (lane % 4), c[j][0] and c[j][1] are of row `group` and columns 8 j + pair and the next, c[j][2]
// and c[j][3] of row group + 8. In float32 the layout is the same, and plain multiplications take the place of Mma:
// exact, without TF32, and bound by loads from shared memory.
//
// Rows are 16 bytes longer than their content, so that the eight rows of a matrix lie in different banks.

#ifndef TFTOOLKIT_FLASH_ATTENTION_GPU_TILES_H_
#define TFTOOLKIT_FLASH_ATTENTION_GPU_TILES_H_

#include <cstring>
#include <type_traits>

#include "gpu.h"
#include "tftoolkit/tensor_core.h"

namespace gpu {

template <typename T>
constexpr bool kOnTensorCores = !std::is_same_v<T, float>;

template <typename T>
constexpr int kChunk = 16 / sizeof(T);  // numbers in 16 bytes

template <typename T, int kDepth>
constexpr int kStride = kDepth + kChunk<T>;

// The weights of a second product in float32, for each warp: its lanes need those of each other.
template <typename T, int kColumns>
constexpr int kExchange = kOnTensorCores<T> ? 0 : 16 * (kColumns + 4);

__device__ inline int Lane() { return threadIdx.x % kWarp; }
__device__ inline int Warp() { return threadIdx.x / kWarp; }
__device__ inline int Group() { return Lane() / 4; }
__device__ inline int Pair() { return Lane() % 4 * 2; }

// Starts to load kRows rows of `depth` numbers, row r from `from` + offset(r) for r from `begin` to `end`; the other
// rows, and columns up to the next multiple of 16, get zeros. WaitForCopies and a barrier must follow.
template <typename T, int kRows, int kDepth, int kThreads, typename Offset>
__device__ __forceinline__ void LoadTile(T* tile, const T* from, int depth, bool aligned, int64_t begin, int64_t end,
                                         const Offset& offset) {
  constexpr int kChunks = kDepth / kChunk<T>;
  const int wide = (depth + 15) / 16 * 16;
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * kChunk<T>;
    if (column >= wide) continue;
    T* to = tile + row * kStride<T, kDepth> + column;
    const bool inside = row >= begin && row < end;
    if (inside && aligned && column < depth) {
      tftoolkit::CopyAsync16(to, from + offset(row) + column);
      continue;
    }
    for (int x = 0; x < kChunk<T>; ++x) {
      to[x] = inside && column + x < depth ? from[offset(row) + column + x] : Store<T>(0.0f);
    }
  }
}

// Four products are added up by themselves: sums of fewer numbers lose fewer digits.
__device__ __forceinline__ float DotOf4(float4 a, float4 b) {
  return ((a.x * b.x + a.y * b.y) + a.z * b.z) + a.w * b.w;
}

// c += A B^T: A 16 rows and B kColumns rows of `depth` numbers.
template <typename T, int kColumns, int kDepth>
__device__ __forceinline__ void MultiplyTransposed(const T* a, const T* b, int depth, float (&c)[kColumns / 8][4]) {
  constexpr int kStep = kStride<T, kDepth>;
  if constexpr (kOnTensorCores<T>) {
    const T* of_a = a + Lane() % 16 * kStep + Lane() / 16 * 8;
    const T* of_b = b + (Lane() / 16 * 8 + Lane() % 8) * kStep + Lane() / 8 % 2 * 8;
#pragma unroll 4
    for (int k = 0; k < depth; k += 16) {
      uint32_t left[4];
      tftoolkit::LoadMatrix(left, of_a + k);
#pragma unroll
      for (int j = 0; j < kColumns / 8; j += 2) {
        uint32_t right[4];
        tftoolkit::LoadMatrix(right, of_b + j * 8 * kStep + k);
        tftoolkit::Mma<T>(c[j], left, {right[0], right[1]});
        tftoolkit::Mma<T>(c[j + 1], left, {right[2], right[3]});
      }
    }
  } else {
    const float* of_a = a + Group() * kStep;
    const float* of_b = b + Pair() * kStep;
    for (int k = 0; k < depth; k += 4) {
      const float4 a0 = *reinterpret_cast<const float4*>(of_a + k);
      const float4 a1 = *reinterpret_cast<const float4*>(of_a + 8 * kStep + k);
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          const float4 right = *reinterpret_cast<const float4*>(of_b + (8 * j + x) * kStep + k);
          c[j][x] += DotOf4(a0, right);
          c[j][2 + x] += DotOf4(a1, right);
        }
      }
    }
  }
}

// Two numbers of T, the first in the lower bits.
template <typename T>
__device__ __forceinline__ uint32_t Pack(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&bits, &pair, sizeof bits);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &pair, sizeof bits);
  }
  return bits;
}

// c += W B: the warp's 16 rows of kInner weights, and B kInner rows of `columns` numbers, of kColumns at most. On
// tensor cores weights are rounded to T. `exchange` is the warp's own.
template <typename T, int kInner, int kColumns, int kDepth>
__device__ __forceinline__ void MultiplyWeights(const float (&weights)[kInner / 8][4], const T* b, int columns,
                                                float (&c)[kColumns / 8][4], float* exchange) {
  constexpr int kStep = kStride<T, kDepth>;
  if constexpr (kOnTensorCores<T>) {
    const T* of_b = b + Lane() % 16 * kStep + Lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < kInner; k += 16) {
      const float(&one)[4] = weights[k / 8], (&other)[4] = weights[k / 8 + 1];
      const uint32_t left[4] = {Pack<T>(one[0], one[1]), Pack<T>(one[2], one[3]), Pack<T>(other[0], other[1]),
                                Pack<T>(other[2], other[3])};
#pragma unroll
      for (int j = 0; j < kColumns / 8; j += 2) {
        if (8 * j >= columns) break;
        uint32_t right[4];
        tftoolkit::LoadMatrixTransposed(right, of_b + k * kStep + 8 * j);
        tftoolkit::Mma<T>(c[j], left, {right[0], right[1]});
        tftoolkit::Mma<T>(c[j + 1], left, {right[2], right[3]});
      }
    }
  } else {
    constexpr int kWide = kInner + 4;
    float* own = exchange + Group() * kWide;
    __syncwarp();  // the others may still read what was there before
#pragma unroll
    for (int j = 0; j < kInner / 8; ++j) {
      float* to = own + 8 * j + Pair();
      to[0] = weights[j][0], to[1] = weights[j][1];
      to[8 * kWide] = weights[j][2], to[8 * kWide + 1] = weights[j][3];
    }
    __syncwarp();
    // 32 columns at a time, and a sum of its own for each tile: shorter sums lose fewer digits.
#pragma unroll
    for (int first = 0; first < kColumns / 8; first += 4) {
      if (8 * first >= columns) break;
      float sums[4][4] = {};
      for (int k = 0; k < kInner; ++k) {
        const float a0 = own[k], a1 = own[8 * kWide + k];
        const float* row = b + k * kStep + 8 * first + Pair();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (8 * (first + j) >= columns) break;
          const float2 right = *reinterpret_cast<const float2*>(row + 8 * j);
          sums[j][0] += a0 * right.x, sums[j][1] += a0 * right.y;
          sums[j][2] += a1 * right.x, sums[j][3] += a1 * right.y;
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) c[first + j][e] += sums[j][e];
      }
    }
  }
}

// Over the four lanes that share a row.
__device__ inline float RowSum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

__device__ inline float RowMaximum(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

}  // namespace gpu

#endif  // TFTOOLKIT_FLASH_ATTENTION_GPU_TILES_H_
