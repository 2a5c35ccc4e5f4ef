// RoIAlign and its gradient on CUDA; roi_align.cc has the maths, samples.h the places of samples.
//
// Forward: a thread makes 16 bytes of channels of one bin. It goes through the bin's samples, four loads of 16 bytes
// each; neighbouring threads read neighbouring channels. Features are read once from memory where boxes do not overlap
// (other reads hit the caches), y is written once.
//
// Gradient: a thread makes 16 bytes of channels of one pixel, from all boxes that touch it, so nothing is added
// atomically and the order of the sum is that of the boxes. A block looks at kThreads boxes at a time, each thread at
// one, and keeps a bit for those that touch its pixels; all threads then go through the bits. dy is read a few times
// from the caches, the gradient is written once.
//
// A box whose index is no picture gives NaN, and no gradient: an error would have to be waited for.

#include <cmath>
#include <cstdint>

#include "samples.h"
#include "tftoolkit/cuda.h"
#include "tftoolkit/dispatch.h"

namespace {

using tftoolkit::Data;
using tftoolkit::roi_align::Axis;
using tftoolkit::roi_align::Count;
using tftoolkit::roi_align::Options;
using tftoolkit::roi_align::Range;
using tftoolkit::roi_align::Sample;
namespace cuda = tftoolkit::cuda;
using Result = ffi::Result<ffi::AnyBuffer>;

constexpr int kThreads = 256;

struct Shape {
  int64_t batch, height, width, channels, boxes, bins_y, bins_x;
};

struct Boxes {
  const float* corners;
  cuda::Integers pictures;
  Options options;

  __device__ __forceinline__ Axis AlongY(int64_t n, const Shape& shape) const {
    return Axis(corners[4 * n + 1], corners[4 * n + 3], shape.bins_y, shape.height, options);
  }
  __device__ __forceinline__ Axis AlongX(int64_t n, const Shape& shape) const {
    return Axis(corners[4 * n], corners[4 * n + 2], shape.bins_x, shape.width, options);
  }
};

template <typename T>
__device__ __forceinline__ void AddTo(cuda::Values<T>& sum, float weight, const T* row, int64_t first, int64_t channels,
                                      bool packed) {
  const cuda::Values<T> values = cuda::LoadValues(row, first, channels, packed);
#pragma unroll
  for (int j = 0; j < cuda::kPack<T>; ++j) sum.at[j] += weight * values.at[j];
}

template <typename T>
__device__ __forceinline__ cuda::Values<T> Constant(float value) {
  cuda::Values<T> values;
#pragma unroll
  for (int j = 0; j < cuda::kPack<T>; ++j) values.at[j] = value;
  return values;
}

// The mean of a bin's samples, of channels from `first` on.
template <typename T>
__device__ cuda::Values<T> Mean(const T* picture, const Axis& y, const Axis& x, int64_t bin_y, int64_t bin_x,
                                const Shape& shape, int64_t first, bool packed) {
  cuda::Values<T> sum = Constant<T>(0);
  const Range rows = y.Inside(bin_y), columns = x.Inside(bin_x);
  const auto add = [&](int64_t row, int64_t column, float weight) {
    AddTo(sum, weight, picture + (row * shape.width + column) * shape.channels, first, shape.channels, packed);
  };
#pragma unroll 1
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    Sample row;
    if (!y.Read(bin_y, i, row)) continue;
#pragma unroll 1
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      Sample column;
      if (!x.Read(bin_x, j, column)) continue;
      add(row.low, column.low, row.low_weight * column.low_weight);
      add(row.low, column.high, row.low_weight * column.high_weight);
      add(row.high, column.low, row.high_weight * column.low_weight);
      add(row.high, column.high, row.high_weight * column.high_weight);
    }
  }
  const float scale = 1.0f / Count(y, x);
#pragma unroll
  for (int j = 0; j < cuda::kPack<T>; ++j) sum.at[j] *= scale;
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    Collect(const T* features, Boxes boxes, Shape shape, int64_t packs, bool packed, T* out) {
  const int64_t work = shape.boxes * shape.bins_y * shape.bins_x * packs;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work; i += int64_t{gridDim.x} * kThreads) {
    const int64_t first = i % packs * cuda::kPack<T>, bin = i / packs;
    const int64_t bin_x = bin % shape.bins_x, bin_y = bin / shape.bins_x % shape.bins_y;
    const int64_t n = bin / shape.bins_x / shape.bins_y, picture = boxes.pictures[n];
    const Axis y = boxes.AlongY(n, shape), x = boxes.AlongX(n, shape);
    const bool good = picture >= 0 && picture < shape.batch && y.finite() && x.finite();
    const T* from = features + (good ? picture : 0) * shape.height * shape.width * shape.channels;
    const cuda::Values<T> values = good ? Mean(from, y, x, bin_y, bin_x, shape, first, packed) : Constant<T>(NAN);
    cuda::StoreValues(values, out + bin * shape.channels, first, shape.channels, packed);
  }
}

// What the samples of a bin give to a pixel of the axis.
__device__ float Weight(const Axis& axis, int64_t b, int64_t pixel) {
  const Range near = axis.Between(b, static_cast<float>(pixel) - 1.0f, static_cast<float>(pixel) + 1.0f);
  float weight = 0;
#pragma unroll 1
  for (int64_t i = near.begin; i < near.end; ++i) {
    Sample sample;
    if (!axis.Read(b, i, sample)) continue;
    if (sample.low == pixel) weight += sample.low_weight;
    if (sample.high == pixel && sample.high != sample.low) weight += sample.high_weight;
  }
  return weight;
}

// The bins that may give something to a pixel, and few others.
__device__ Range Bins(const Axis& axis, int64_t pixel) {
  if (!(axis.bin > 0.0f)) return {0, axis.bins};
  // What lies a pixel beyond the border counts for the border.
  const float low = (static_cast<float>(pixel) - 1.0f - axis.start) / axis.bin;
  const float high = (static_cast<float>(pixel) + 1.0f - axis.start) / axis.bin;
  return {tftoolkit::roi_align::Whole(low - 1.0f, 0, axis.bins),
          tftoolkit::roi_align::Whole(high + 2.0f, 0, axis.bins)};
}

// Adds what a box gives to a pixel; `dy` is the box's.
template <typename T>
__device__ void AddBox(const T* dy, const Axis& y, const Axis& x, int64_t row, int64_t column, const Shape& shape,
                       int64_t first, bool packed, cuda::Values<T>& sum) {
  const Range rows = Bins(y, row), columns = Bins(x, column);
  const float scale = 1.0f / Count(y, x);
#pragma unroll 1
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const float weight = Weight(y, i, row) * scale;
    if (weight == 0.0f) continue;
#pragma unroll 1
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      const float both = weight * Weight(x, j, column);
      if (both == 0.0f) continue;
      AddTo(sum, both, dy + (i * shape.bins_x + j) * shape.channels, first, shape.channels, packed);
    }
  }
}

struct Pixel {
  int64_t picture, row, column;

  __device__ __forceinline__ Pixel(int64_t i, const Shape& shape)
      : picture(i / shape.width / shape.height), row(i / shape.width % shape.height), column(i % shape.width) {}
};

// Whether a box may touch one of the pixels from `first` to `last`, which are neighbours in memory.
__device__ bool Touches(const Boxes& boxes, int64_t n, const Shape& shape, const Pixel& first, const Pixel& last) {
  const int64_t picture = boxes.pictures[n];
  if (picture < first.picture || picture > last.picture) return false;
  const Axis y = boxes.AlongY(n, shape), x = boxes.AlongX(n, shape);
  if (!y.finite() || !x.finite()) return false;
  if (first.picture < last.picture) return true;
  const Range rows = y.Pixels(), columns = x.Pixels();
  if (last.row < rows.begin || first.row >= rows.end) return false;
  return first.row < last.row || (last.column >= columns.begin && first.column < columns.end);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 3)
    Spread(const T* dy, Boxes boxes, Shape shape, int64_t packs, bool packed, T* out) {
  __shared__ unsigned touching[kThreads / cuda::kWarp];
  const int64_t pixels = shape.batch * shape.height * shape.width, work = pixels * packs;
  const int64_t of_box = shape.bins_y * shape.bins_x * shape.channels;
  for (int64_t base = int64_t{blockIdx.x} * kThreads; base < work; base += int64_t{gridDim.x} * kThreads) {
    const int64_t i = base + threadIdx.x, mine = i < work ? i / packs : pixels - 1;
    const int64_t end = base + kThreads < work ? base + kThreads : work;
    const Pixel first(base / packs, shape), last((end - 1) / packs, shape), pixel(mine, shape);
    const int64_t channel = i % packs * cuda::kPack<T>;
    cuda::Values<T> sum = Constant<T>(0);
    for (int64_t begin = 0; begin < shape.boxes; begin += kThreads) {
      const int64_t n = begin + threadIdx.x;
      const bool touches = n < shape.boxes && Touches(boxes, n, shape, first, last);
      const unsigned bits = __ballot_sync(0xffffffffu, touches);
      __syncthreads();  // the bits of the boxes before may still be in use
      if (threadIdx.x % cuda::kWarp == 0) touching[threadIdx.x / cuda::kWarp] = bits;
      __syncthreads();
      for (int warp = 0; warp < kThreads / cuda::kWarp; ++warp) {
        for (unsigned left = touching[warp]; left != 0; left &= left - 1) {
          const int64_t box = begin + warp * cuda::kWarp + __ffs(static_cast<int>(left)) - 1;
          if (i >= work || boxes.pictures[box] != pixel.picture) continue;
          AddBox(dy + box * of_box, boxes.AlongY(box, shape), boxes.AlongX(box, shape), pixel.row, pixel.column, shape,
                 channel, packed, sum);
        }
      }
    }
    if (i < work) cuda::StoreValues(sum, out + mine * shape.channels, channel, shape.channels, packed);
  }
}

ffi::Error RoiAlign(cudaStream_t stream, ffi::AnyBuffer features, ffi::AnyBuffer boxes, ffi::AnyBuffer box_indices,
                    Result y, bool aligned, int64_t output_height, int64_t output_width, int64_t sampling_ratio,
                    float spatial_scale) {
  ffi::Error wrong = tftoolkit::roi_align::Check(output_height, output_width, sampling_ratio);
  if (wrong.failure() || y->element_count() == 0) return wrong;
  const auto dims = features.dimensions();
  const Shape shape{dims[0], dims[1], dims[2], dims[3], boxes.dimensions()[0], output_height, output_width};
  const Boxes given{Data<float>(boxes), cuda::Integers(box_indices), {spatial_scale, sampling_ratio, aligned}};
  return tftoolkit::WithFloatType("RoiAlign", features.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = Data<T>(features);
    T* to = Data<T>(y);
    const int64_t packs = cuda::Ceil(shape.channels, cuda::kPack<T>);
    const int64_t work = shape.boxes * shape.bins_y * shape.bins_x * packs;
    const unsigned blocks = tftoolkit::GridBlocks(cuda::Ceil(work, kThreads), INT32_MAX);
    Collect<T>
        <<<blocks, kThreads, 0, stream>>>(from, given, shape, packs, cuda::Packed<T>(shape.channels, from, to), to);
    return cuda::Launched();
  });
}

ffi::Error RoiAlignGrad(cudaStream_t stream, ffi::AnyBuffer dy, ffi::AnyBuffer features, ffi::AnyBuffer boxes,
                        ffi::AnyBuffer box_indices, Result dfeatures, bool aligned, int64_t sampling_ratio,
                        float spatial_scale) {
  const auto dims = features.dimensions(), bins = dy.dimensions();
  ffi::Error wrong = tftoolkit::roi_align::Check(bins[1], bins[2], sampling_ratio);
  if (wrong.failure() || dfeatures->element_count() == 0) return wrong;
  const Shape shape{dims[0], dims[1], dims[2], dims[3], bins[0], bins[1], bins[2]};
  const Boxes given{Data<float>(boxes), cuda::Integers(box_indices), {spatial_scale, sampling_ratio, aligned}};
  return tftoolkit::WithFloatType("RoiAlignGrad", features.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = Data<T>(dy);
    T* to = Data<T>(dfeatures);
    const int64_t packs = cuda::Ceil(shape.channels, cuda::kPack<T>);
    const int64_t work = shape.batch * shape.height * shape.width * packs;
    const unsigned blocks = tftoolkit::GridBlocks(cuda::Ceil(work, kThreads), INT32_MAX);
    Spread<T>
        <<<blocks, kThreads, 0, stream>>>(from, given, shape, packs, cuda::Packed<T>(shape.channels, from, to), to);
    return cuda::Launched();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(RoiAlignCuda, RoiAlign,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("aligned")
                           .Attr<int64_t>("output_height")
                           .Attr<int64_t>("output_width")
                           .Attr<int64_t>("sampling_ratio")
                           .Attr<float>("spatial_scale"),
                       {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER(RoiAlignGradCuda, RoiAlignGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("aligned")
                           .Attr<int64_t>("sampling_ratio")
                           .Attr<float>("spatial_scale"),
                       {ffi::Traits::kCmdBufferCompatible});

TK_KERNEL(RoiAlign, CUDA, RoiAlignCuda);
TK_KERNEL(RoiAlignGrad, CUDA, RoiAlignGradCuda);
