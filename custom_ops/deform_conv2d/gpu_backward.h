// Gradients of a chunk of pixels on CUDA; see deform_conv2d.cu.

#ifndef TFTOOLKIT_DEFORM_CONV2D_GPU_BACKWARD_H_
#define TFTOOLKIT_DEFORM_CONV2D_GPU_BACKWARD_H_

#include <cmath>

#include "gpu_forward.h"

namespace gpu {

// The gradients by the columns: dy times the transposed weight.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) ColumnGradientsKernel(Backward call, Chunk chunk, int64_t work) {
  using Product = cuda::Product<T, false, false>;
  const Shape& s = call.shape;
  const int64_t rows = s.points() * s.group_channels();
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) {
    const Tile tile(i, chunk.count, rows);
    typename Product::Sums c = {};
    Product::Add(OutputsOf<T>(s, call.dy, chunk, tile.group), tile.row, WeightOf<T>(s, call.weight, tile.group),
                 tile.column, 0, s.group_outputs(), c);
    ForEach<Product>(c, tile, chunk.count, rows, [&](int64_t row, int64_t column, float value) {
      chunk.dcolumns[(row * s.groups + tile.group) * rows + column] = value;
    });
  }
}

// The largest term of a sum over x, in magnitude; NaN's bits are larger than all others.
template <typename T>
__global__ void __launch_bounds__(kThreads) LargestKernel(Backward call, Chunk chunk) {
  const Shape& s = call.shape;
  const int64_t work = chunk.count * s.channels * s.points(), stride = int64_t{gridDim.x} * kThreads;
  const T* mask = static_cast<const T*>(call.mask);
  unsigned most = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work; i += stride) {
    float value = chunk.dcolumns[i];
    if (mask != nullptr) {
      const int64_t in_group = i / s.group_channels(), point = in_group % s.points();
      const int64_t group = in_group / s.points() % s.groups, pixel = in_group / s.points() / s.groups;
      const int64_t channel = group * s.group_channels() + i % s.group_channels();
      const int64_t offset_group = channel / (s.channels / s.offset_groups);
      value *= tftoolkit::Load(mask[((chunk.first + pixel) * s.offset_groups + offset_group) * s.points() + point]);
    }
    most = max(most, tftoolkit::FloatBits(value) & 0x7fffffffu);
  }
#pragma unroll
  for (int offset = cuda::kWarp / 2; offset > 0; offset /= 2)
    most = max(most, __shfl_xor_sync(0xffffffffu, most, offset));
  if (threadIdx.x % cuda::kWarp == 0) atomicMax(call.largest, most);
}

// Terms are stored times 2^Shift, so that as many as there may be do not leave 63 bits. They keep at least 2^-30 of the
// largest one, and whole numbers give the same sum in every order.
__device__ __forceinline__ int Shift(const Backward& call) {
  const int exponent = static_cast<int>(*call.largest >> 23) - 126;  // all terms are smaller than 2^exponent
  return max(min(call.room - exponent, 100), -126);
}

// A warp makes the gradients of a point of a pixel: by its place and its mask, and what it adds to x; and its column.
template <typename T>
__global__ void __launch_bounds__(kThreads) PointsKernel(Backward call, Chunk chunk) {
  const Shape& s = call.shape;
  const int64_t points = s.points(), channels = s.channels / s.offset_groups;
  const int64_t work = chunk.count * s.offset_groups * points;
  const int64_t warps = kThreads / cuda::kWarp, lane = threadIdx.x % cuda::kWarp;
  const bool finite = *call.largest < 0x7f800000u;
  const float scale = ldexpf(1.0f, Shift(call));
  const T* x = static_cast<const T*>(call.x);
  T* columns = static_cast<T*>(chunk.columns);
  for (int64_t i = blockIdx.x * warps + threadIdx.x / cuda::kWarp; i < work; i += gridDim.x * warps) {
    const int64_t point = i % points, offset_group = i / points % s.offset_groups, pixel = i / points / s.offset_groups;
    const Point found =
        tftoolkit::deform::FindPoint(s, static_cast<const T*>(call.offset), static_cast<const T*>(call.mask),
                                     chunk.first + pixel, offset_group, point);
    float dots[4] = {0, 0, 0, 0};
    for (int64_t c = lane; c < channels; c += cuda::kWarp) {
      const int64_t channel = offset_group * channels + c, place = ColumnPlace(s, pixel, point, channel);
      const float g = chunk.dcolumns[place];
      float column = found.Outside();
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        if (found.corners[corner] < 0) continue;
        const int64_t at = found.corners[corner] + channel;
        const float value = tftoolkit::Load(x[at]), weight = found.Weight(corner) * found.mask;
        column += weight * value;
        dots[corner] += g * value;
        if (finite) atomicAdd(call.fixed + at, static_cast<unsigned long long>(llrintf(g * weight * scale)));
      }
      columns[place] = tftoolkit::Store<T>(column);
    }
    cuda::GroupSums<cuda::kWarp>(dots);
    if (lane != 0) continue;
    const tftoolkit::deform::PointGradient gradient = tftoolkit::deform::GradientOf(found, dots);
    const int64_t place = ((chunk.first + pixel) * s.offset_groups + offset_group) * points + point;
    static_cast<T*>(call.doffset)[2 * place] = tftoolkit::Store<T>(gradient.y);
    static_cast<T*>(call.doffset)[2 * place + 1] = tftoolkit::Store<T>(gradient.x);
    if (call.dmask != nullptr) static_cast<T*>(call.dmask)[place] = tftoolkit::Store<T>(gradient.mask);
  }
}

// Adds what a chunk gives to an element of a gradient to the sum, or, of the last chunk, stores it in T.
template <typename T>
__device__ __forceinline__ void AddChunk(const Chunk& chunk, float value, int64_t at, float* sums, void* result) {
  if (!chunk.begins) value += sums[at];
  if (chunk.ends) {
    static_cast<T*>(result)[at] = tftoolkit::Store<T>(value);
  } else {
    sums[at] = value;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) InputsKernel(Backward call, Chunk chunk, int64_t work) {
  const bool finite = *call.largest < 0x7f800000u;
  const int shift = Shift(call);
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work; i += int64_t{gridDim.x} * kThreads) {
    const float sum = static_cast<float>(static_cast<long long>(call.fixed[i]));
    AddChunk<T>(chunk, finite ? ldexpf(sum, -shift) : NAN, i, call.dx_sums, call.dx);
  }
}

// The gradients by the weight: the transposed columns times dy.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) WeightKernel(Backward call, Chunk chunk, int64_t work) {
  using Product = cuda::Product<T, true, true>;
  const Shape& s = call.shape;
  const int64_t rows = s.points() * s.group_channels();
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) {
    const Tile tile(i, rows, s.group_outputs());
    typename Product::Sums c = {};
    Product::Add(ColumnsOf<T>(s, chunk, tile.group), tile.row, OutputsOf<T>(s, call.dy, chunk, tile.group), tile.column,
                 0, chunk.count, c);
    ForEach<Product>(c, tile, rows, s.group_outputs(), [&](int64_t row, int64_t column, float value) {
      AddChunk<T>(chunk, value, row * s.out_channels + tile.group * s.group_outputs() + column, call.dweight_sums,
                  call.dweight);
    });
  }
}

// The sums of dy over all pixels; a block for 32 outputs.
template <typename T>
__global__ void __launch_bounds__(kThreads) BiasKernel(Backward call, int64_t pixels) {
  constexpr int kRows = kThreads / cuda::kWarp;
  __shared__ double sums[kRows][cuda::kWarp];
  const int row = threadIdx.x / cuda::kWarp, lane = threadIdx.x % cuda::kWarp;
  const int64_t outputs = call.shape.out_channels;
  for (int64_t first = int64_t{blockIdx.x} * cuda::kWarp; first < outputs; first += int64_t{gridDim.x} * cuda::kWarp) {
    const int64_t output = first + lane;
    double sum = 0;
    for (int64_t pixel = row; pixel < pixels && output < outputs; pixel += kRows) {
      sum += tftoolkit::Load(static_cast<const T*>(call.dy)[pixel * outputs + output]);
    }
    __syncthreads();  // the sums of the outputs before may still be in use
    sums[row][lane] = sum;
    __syncthreads();
    if (row != 0 || output >= outputs) continue;
    for (int other = 1; other < kRows; ++other) sum += sums[other][lane];
    static_cast<T*>(call.dbias)[output] = tftoolkit::Store<T>(static_cast<float>(sum));
  }
}

inline unsigned Blocks(int64_t threads) { return tftoolkit::GridBlocks(cuda::Ceil(threads, kThreads), INT32_MAX); }

template <typename T>
ffi::Error LaunchBackward(cudaStream_t stream, const Backward& call, const Chunk& chunk) {
  const Shape& s = call.shape;
  const int64_t rows = s.points() * s.group_channels(), pixels = s.batch * s.pixels();
  const int64_t size = s.batch * s.height * s.width * s.channels;
  if (chunk.begins && s.out_channels > 0) {
    BiasKernel<T><<<Blocks(s.out_channels * (kThreads / cuda::kWarp)), kThreads, 0, stream>>>(call, pixels);
  }
  cudaMemsetAsync(call.fixed, 0, size * sizeof *call.fixed, stream);
  cudaMemsetAsync(call.largest, 0, sizeof *call.largest, stream);
  int64_t tiles = Tile::Count(s.groups, chunk.count, rows);
  ffi::Error failed =
      cuda::LaunchProduct<cuda::Product<T, false, false>>(ColumnGradientsKernel<T>, tiles, stream, call, chunk, tiles);
  if (failed.failure()) return failed;
  if (chunk.count > 0) {
    const unsigned few = tftoolkit::GridBlocks(cuda::Ceil(chunk.count * rows * s.groups, kThreads), 4096);
    LargestKernel<T><<<few, kThreads, 0, stream>>>(call, chunk);
    const int64_t threads = chunk.count * s.offset_groups * s.points() * cuda::kWarp;
    PointsKernel<T><<<Blocks(threads), kThreads, 0, stream>>>(call, chunk);
  }
  if (size > 0) InputsKernel<T><<<Blocks(size), kThreads, 0, stream>>>(call, chunk, size);
  if (failed = cuda::Launched(); failed.failure()) return failed;
  tiles = Tile::Count(s.groups, rows, s.group_outputs());
  return cuda::LaunchProduct<cuda::Product<T, true, true>>(WeightKernel<T>, tiles, stream, call, chunk, tiles);
}

}  // namespace gpu

#endif  // TFTOOLKIT_DEFORM_CONV2D_GPU_BACKWARD_H_
