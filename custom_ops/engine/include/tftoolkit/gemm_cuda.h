// Products of matrices on CUDA, a tile of 128 x 128 for each block: bfloat16 and float16 on tensor cores with sums in
// float32, float32 exactly, without TF32.
//
// Three stages of shared memory hold 32 (16) steps of the inner dimension each; copies into two of them run while the
// third is multiplied. A warp has 64 x 32 of the sums as tensor cores hold them (see tensor_core.h): with group = lane
// / 4 and pair = 2 * (lane % 4), c[i][j][2 h + x] is of row 16 i + 8 h + group and column 8 j + pair + x. The layout is
// the same in float32, where plain multiplications take the place of Mma, 16 loads from shared memory for 64 of them.
// Rows in shared memory are 16 bytes longer than their content, so that eight rows lie in different banks.

#ifndef TFTOOLKIT_GEMM_CUDA_H_
#define TFTOOLKIT_GEMM_CUDA_H_

#include <cstdint>
#include <type_traits>

#include "tftoolkit/cuda.h"
#include "tftoolkit/tensor_core.h"

namespace tftoolkit {
namespace cuda {

// A matrix in global memory. Behind `rows` and `columns` there are zeros. Packed: rows begin at multiples of 16 bytes
// and are as long as some.
template <typename T>
struct Matrix {
  const T* data;
  int64_t step;  // elements from row to row
  int64_t rows, columns;
  bool packed;

  __device__ __forceinline__ const T* Row(int64_t row) const { return data + row * step; }
};

// Starts to load a tile of a matrix from a row and a column on, which is a multiple of 16 bytes. WaitForCopies and a
// barrier must follow.
template <typename T, int kRows, int kColumns, int kThreads, typename Source>
__device__ __forceinline__ void LoadTile(T (&tile)[kRows * (kColumns + kPack<T>)], const Source& source,
                                         int64_t first_row, int64_t first_column) {
  constexpr int kPacks = kColumns / kPack<T>;
  static_assert(kRows * kPacks % kThreads == 0);
#pragma unroll 1  // addresses of several loads at once would not fit the registers
  for (int i = threadIdx.x; i < kRows * kPacks; i += kThreads) {
    const int row = i / kPacks, pack = i % kPacks * kPack<T>;
    T* to = tile + row * (kColumns + kPack<T>)+pack;
    const int64_t column = first_column + pack;
    const bool inside = first_row + row < source.rows && column < source.columns;
    if (inside && source.packed) {
      CopyAsync16(to, source.Row(first_row + row) + column);
    } else {
      *reinterpret_cast<uint4*>(to) =
          inside ? LoadPack(source.Row(first_row + row), column, 0, source.columns, false) : make_uint4(0, 0, 0, 0);
    }
  }
}

template <typename T>
constexpr bool kOnTensorCores = !std::is_same_v<T, float>;

// C += A B. A is kept as [row][inner] or, with kInnerFirstA, as [inner][row]; B as [column][inner] or, with
// kInnerFirstB, as [inner][column].
template <typename T, bool kInnerFirstA, bool kInnerFirstB>
struct Product {
  static constexpr int kTile = 128, kThreads = 256, kStages = 3;
  static constexpr int kInner = kOnTensorCores<T> ? 32 : 16;  // of a stage
  static constexpr int kARows = kInnerFirstA ? kInner : kTile, kAColumns = kInnerFirstA ? kTile : kInner;
  static constexpr int kBRows = kInnerFirstB ? kInner : kTile, kBColumns = kInnerFirstB ? kTile : kInner;
  static constexpr int kAStep = kAColumns + kPack<T>, kBStep = kBColumns + kPack<T>;
  using Sums = float[4][4][4];

  struct alignas(16) Stage {
    T a[kARows * kAStep], b[kBRows * kBStep];
  };
  struct Memory {
    Stage stages[kStages];
  };

  static __device__ Memory& Shared() {
    extern __shared__ __align__(16) unsigned char memory[];
    return *reinterpret_cast<Memory*>(memory);
  }

  static __device__ int Lane() { return threadIdx.x % kWarp; }
  static __device__ int FirstRow() { return static_cast<int>(threadIdx.x) / kWarp / 4 * 64; }  // of the warp
  static __device__ int FirstColumn() { return static_cast<int>(threadIdx.x) / kWarp % 4 * 32; }

  // The place in the tile of c[i][j][2 h + x].
  static __device__ int Row(int i, int h) { return FirstRow() + 16 * i + 8 * h + Lane() / 4; }
  static __device__ int Column(int j, int x) { return FirstColumn() + 8 * j + Lane() % 4 * 2 + x; }

  // Adds the product over inner indices [begin, end) to the block's tile. `begin` is a multiple of kInner, and `end`,
  // too, unless it is the end of both matrices. Source: Matrix, or what has its members.
  template <typename SourceA, typename SourceB>
  static __device__ __forceinline__ void Add(const SourceA& a, int64_t row, const SourceB& b, int64_t column,
                                             int64_t begin, int64_t end, Sums& c) {
    Memory& memory = Shared();
    const auto load = [&](int64_t inner, Stage& stage) {
      if (inner < end) {
        LoadTile<T, kARows, kAColumns, kThreads>(stage.a, a, kInnerFirstA ? inner : row, kInnerFirstA ? row : inner);
        LoadTile<T, kBRows, kBColumns, kThreads>(stage.b, b, kInnerFirstB ? inner : column,
                                                 kInnerFirstB ? column : inner);
      }
      CommitCopies();
    };
    __syncthreads();  // the stages may still be in use for the previous tile
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) load(begin + i * kInner, memory.stages[i]);
    int stage = 0;
    for (int64_t inner = begin; inner < end; inner += kInner) {
      WaitForCopies<kStages - 2>();
      __syncthreads();  // the copies of all threads are in, and the stage before this one is free
      load(inner + (kStages - 1) * kInner, memory.stages[(stage + kStages - 1) % kStages]);
      Multiply(memory.stages[stage], c);
      stage = (stage + 1) % kStages;
    }
  }

  static __device__ __forceinline__ void Multiply(const Stage& stage, Sums& c) {
    if constexpr (kOnTensorCores<T>) {
      MultiplyOnTensorCores(stage, c);
    } else {
      MultiplyPlainly(stage, c);
    }
  }

  static __device__ __forceinline__ void MultiplyOnTensorCores(const Stage& stage, Sums& c) {
    using Format = std::conditional_t<std::is_same_v<T, Half>, __half, __nv_bfloat16>;
    const int lane = Lane(), in_eight = lane % 8, eight = lane / 8 % 2 * 8, sixteen = lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kInner; k += 16) {
      uint32_t left[4][4], right[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = FirstRow() + 16 * i;
        if constexpr (kInnerFirstA) {
          LoadMatrixTransposed(left[i], stage.a + (k + sixteen + in_eight) * kAStep + row + eight);
        } else {
          LoadMatrix(left[i], stage.a + (row + eight + in_eight) * kAStep + k + sixteen);
        }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = FirstColumn() + 16 * j;
        if constexpr (kInnerFirstB) {
          LoadMatrixTransposed(right[j], stage.b + (k + eight + in_eight) * kBStep + column + sixteen);
        } else {
          LoadMatrix(right[j], stage.b + (column + sixteen + in_eight) * kBStep + k + eight);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          Mma<Format>(c[i][j], left[i], {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]});
        }
      }
    }
  }

  static __device__ __forceinline__ void MultiplyPlainly(const Stage& stage, Sums& c) {
#pragma unroll 4
    for (int k = 0; k < kInner; ++k) {
      float left[8], right[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = Row(i / 2, i % 2), column = Column(i / 2, i % 2);
        left[i] = stage.a[kInnerFirstA ? k * kAStep + row : row * kAStep + k];
        right[i] = stage.b[kInnerFirstB ? k * kBStep + column : column * kBStep + k];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) c[i / 2][j / 2][i % 2 * 2 + j % 2] += left[i] * right[j];
      }
    }
  }
};

// Launches `kernel` with the shared memory of a Product, more than 48 KiB, which must be asked for.
template <typename Product, typename... Parameters, typename... Arguments>
ffi::Error LaunchProduct(void (*kernel)(Parameters...), int64_t tiles, cudaStream_t stream,
                         const Arguments&... arguments) {
  if (tiles == 0) return ffi::Error::Success();
  constexpr size_t kBytes = sizeof(typename Product::Memory);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes));
  kernel<<<GridBlocks(tiles, INT32_MAX), Product::kThreads, kBytes, stream>>>(arguments...);
  return Launched();
}

}  // namespace cuda
}  // namespace tftoolkit

#endif  // TFTOOLKIT_GEMM_CUDA_H_
