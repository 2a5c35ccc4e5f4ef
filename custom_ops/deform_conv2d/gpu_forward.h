// Columns of a chunk of pixels, and their product with the weight, on CUDA; see deform_conv2d.cu.

#ifndef TFTOOLKIT_DEFORM_CONV2D_GPU_FORWARD_H_
#define TFTOOLKIT_DEFORM_CONV2D_GPU_FORWARD_H_

#include <cmath>

#include "gpu.h"
#include "tftoolkit/gemm_cuda.h"

namespace gpu {

// Where the column of a channel and a point lies.
__device__ inline int64_t ColumnPlace(const Shape& s, int64_t pixel, int64_t point, int64_t channel) {
  const int64_t group = channel / s.group_channels();
  return ((pixel * s.groups + group) * s.points() + point) * s.group_channels() + channel % s.group_channels();
}

// A thread makes kCount channels of a column: 16 bytes, or one where groups or x are not aligned to that.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) ColumnsKernel(Forward call, Chunk chunk) {
  const Shape& s = call.shape;
  const int64_t units = s.channels / kCount, work = chunk.count * s.points() * units;
  const T* x = static_cast<const T*>(call.x);
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work; i += int64_t{gridDim.x} * kThreads) {
    const int64_t channel = i % units * kCount, point = i / units % s.points(), pixel = i / units / s.points();
    const int64_t offset_group = channel / (s.channels / s.offset_groups);
    const Point found =
        tftoolkit::deform::FindPoint(s, static_cast<const T*>(call.offset), static_cast<const T*>(call.mask),
                                     chunk.first + pixel, offset_group, point);
    float sums[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) sums[j] = found.Outside();
    for (int corner = 0; corner < 4; ++corner) {
      if (found.corners[corner] < 0) continue;
      const float weight = found.Weight(corner) * found.mask;
      const T* from = x + found.corners[corner] + channel;
      if constexpr (kCount > 1) {
        const cuda::Values<T> values = cuda::LoadValues(from, 0, kCount, true);
#pragma unroll
        for (int j = 0; j < kCount; ++j) sums[j] += weight * values.at[j];
      } else {
        sums[0] += weight * tftoolkit::Load(*from);
      }
    }
    T* to = static_cast<T*>(chunk.columns) + ColumnPlace(s, pixel, point, channel);
    if constexpr (kCount > 1) {
      cuda::Values<T> values;
#pragma unroll
      for (int j = 0; j < kCount; ++j) values.at[j] = sums[j];
      cuda::StoreValues(values, to, 0, kCount, true);
    } else {
      *to = tftoolkit::Store<T>(sums[0]);
    }
  }
}

template <typename T>
ffi::Error LaunchColumns(cudaStream_t stream, const Forward& call, const Chunk& chunk) {
  const Shape& s = call.shape;
  constexpr int kCount = cuda::kPack<T>;
  const int64_t work = chunk.count * s.points() * s.channels;
  if (work == 0) return ffi::Error::Success();
  const bool packed =
      cuda::Packed<T>(s.group_channels(), static_cast<const T*>(call.x)) && s.channels / s.offset_groups % kCount == 0;
  const int64_t threads = packed ? work / kCount : work;
  const unsigned blocks = tftoolkit::GridBlocks(cuda::Ceil(threads, kThreads), INT32_MAX);
  if (packed) {
    ColumnsKernel<T, kCount><<<blocks, kThreads, 0, stream>>>(call, chunk);
  } else {
    ColumnsKernel<T, 1><<<blocks, kThreads, 0, stream>>>(call, chunk);
  }
  return cuda::Launched();
}

// The columns of a group, [pixel][row]; the rows of its part of the weight, [row][output]; its part of dy or y.
template <typename T>
__device__ __forceinline__ cuda::Matrix<T> ColumnsOf(const Shape& s, const Chunk& chunk, int64_t group) {
  const int64_t rows = s.points() * s.group_channels();
  return {static_cast<const T*>(chunk.columns) + group * rows, s.groups * rows, chunk.count, rows,
          rows % cuda::kPack<T> == 0};
}

template <typename T>
__device__ __forceinline__ bool OutputsPacked(const Shape& s, const T* data) {
  return s.group_outputs() % cuda::kPack<T> == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

template <typename T>
__device__ __forceinline__ cuda::Matrix<T> WeightOf(const Shape& s, const void* weight, int64_t group) {
  const T* data = static_cast<const T*>(weight);
  return {data + group * s.group_outputs(), s.out_channels, s.points() * s.group_channels(), s.group_outputs(),
          OutputsPacked(s, data)};
}

template <typename T>
__device__ __forceinline__ cuda::Matrix<T> OutputsOf(const Shape& s, const void* dy, const Chunk& chunk,
                                                     int64_t group) {
  const T* data = static_cast<const T*>(dy);
  return {data + chunk.first * s.out_channels + group * s.group_outputs(), s.out_channels, chunk.count,
          s.group_outputs(), OutputsPacked(s, data)};
}

// A tile of a product, for each group: tiles go through the columns first.
struct Tile {
  int64_t group, row, column;

  __device__ __forceinline__ Tile(int64_t i, int64_t rows, int64_t columns) {
    const int64_t across = (columns + kTile - 1) / kTile, down = (rows + kTile - 1) / kTile;
    column = i % across * kTile;
    row = i / across % down * kTile;
    group = i / across / down;
  }
  static int64_t Count(int64_t groups, int64_t rows, int64_t columns) {
    return groups * cuda::Ceil(rows, kTile) * cuda::Ceil(columns, kTile);
  }
};

// store(row, column, value) for what a thread has of a tile.
template <typename Product, typename StoreValue>
__device__ __forceinline__ void ForEach(const typename Product::Sums& c, const Tile& tile, int64_t rows,
                                        int64_t columns, const StoreValue& store) {
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const int64_t row = tile.row + Product::Row(r / 2, r % 2);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int64_t column = tile.column + Product::Column(e / 2, e % 2);
      if (row < rows && column < columns) store(row, column, c[r / 2][e / 2][r % 2 * 2 + e % 2]);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) OutputsKernel(Forward call, Chunk chunk, int64_t work) {
  using Product = cuda::Product<T, false, true>;
  const Shape& s = call.shape;
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) {
    const Tile tile(i, chunk.count, s.group_outputs());
    typename Product::Sums c = {};
    Product::Add(ColumnsOf<T>(s, chunk, tile.group), tile.row, WeightOf<T>(s, call.weight, tile.group), tile.column, 0,
                 s.points() * s.group_channels(), c);
    ForEach<Product>(c, tile, chunk.count, s.group_outputs(), [&](int64_t row, int64_t column, float value) {
      const int64_t output = tile.group * s.group_outputs() + column;
      if (call.bias != nullptr) value += tftoolkit::Load(static_cast<const T*>(call.bias)[output]);
      static_cast<T*>(call.y)[(chunk.first + row) * s.out_channels + output] = tftoolkit::Store<T>(value);
    });
  }
}

template <typename T>
ffi::Error LaunchForward(cudaStream_t stream, const Forward& call, const Chunk& chunk) {
  if (ffi::Error failed = LaunchColumns<T>(stream, call, chunk); failed.failure()) return failed;
  const int64_t tiles = Tile::Count(call.shape.groups, chunk.count, call.shape.group_outputs());
  return cuda::LaunchProduct<cuda::Product<T, false, true>>(OutputsKernel<T>, tiles, stream, call, chunk, tiles);
}

}  // namespace gpu

#endif  // TFTOOLKIT_DEFORM_CONV2D_GPU_FORWARD_H_
