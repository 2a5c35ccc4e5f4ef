// Images sampled at the points of a grid, and the gradients, on CUDA; grid_sample.cc has the maths.
//
// A thread takes 16 bytes of a point's channels, so that threads side by side read and write side by side where there
// are channels enough; places and weights are computed again for each. For the gradient of the grid as many threads as
// there are such pieces, at most a warp, add up a point.
//
// The gradient of the images is added up in whole numbers: what order atomics come in makes no difference then, and it
// is the same in every run. Each share w dy is rounded to a multiple of 2^-k, k so large for each image that the sum of
// all its points cannot pass 2^62: with a million points that leaves 40 bits below the largest dy, 16 more than float32
// has. Shares that are not finite set a bit instead, and make their pixel infinite or NaN as they would make a sum.
//
// Traffic: forward reads grid and, through the caches, images, and writes y: the floor. Backward reads dy three times
// (for its largest number, and for each gradient), images and grid, and writes and reads 8 bytes for each number of
// dimages.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "places.h"
#include "tftoolkit/cuda.h"
#include "tftoolkit/dispatch.h"

namespace {

using tftoolkit::Data;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace cuda = tftoolkit::cuda;
namespace gs = tftoolkit::grid_sample;

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;
constexpr unsigned kAllLanes = 0xffffffffu;

constexpr int Power(int base, int exponent) { return exponent == 0 ? 1 : base * Power(base, exponent - 1); }

// Pixels and weights are computed when they are asked for: as arrays they would not fit the registers.
template <gs::Mode kMode, int kDims>
struct Point {
  static constexpr int kTaps = gs::Taps(kMode), kPixels = Power(kTaps, kDims);
  int32_t first[kDims];
  float fraction[kDims], slope[kDims];

  __device__ Point(const gs::Problem<kDims>& problem, const float* coordinates) {
#pragma unroll
    for (int a = 0; a < kDims; ++a) {
      const gs::Axis& axis = problem.axes[a];
      gs::WithPadding(axis.padding, [&](auto padding) {
        const gs::Place place = gs::PlaceOf<kMode, decltype(padding)::value>(axis, coordinates[kDims - 1 - a]);
        const gs::Start start = gs::StartOf<kMode>(place.at);
        first[a] = start.first;
        fraction[a] = start.fraction;
        slope[a] = place.slope * axis.scale();
      });
    }
  }

  // The t-th pixel of the point in the image, -1 if it is outside; the last axis goes fastest.
  __device__ int64_t Pixel(const gs::Problem<kDims>& problem, int t) const {
    int64_t pixel = 0;
    bool outside = false;
#pragma unroll
    for (int a = 0, rest = kPixels; a < kDims; ++a) {
      rest /= kTaps;
      const gs::Axis& axis = problem.axes[a];
      int32_t here = 0;
      gs::WithPadding(axis.padding, [&](auto padding) {
        here = gs::PixelOf<kMode, decltype(padding)::value>(axis, first[a] + t / rest % kTaps);
      });
      outside |= here < 0;
      pixel = pixel * axis.size + here;
    }
    return outside ? -1 : pixel;
  }

  // Its weight; with `by` an axis, the weight's derivative by that coordinate.
  __device__ float Weight(int t, int by = -1) const {
    float weight = 1;
#pragma unroll
    for (int a = 0, rest = kPixels; a < kDims; ++a) {
      rest /= kTaps;
      const int k = t / rest % kTaps;
      weight *= a == by ? gs::WeightSlopeOf<kMode>(k, fraction[a]) * slope[a] : gs::WeightOf<kMode>(k, fraction[a]);
    }
    return weight;
  }

  __device__ bool nowhere() const { return Weight(0) != Weight(0); }
};

// Pieces of a point's channels, and of all points.
template <typename T>
__host__ __device__ int64_t Pieces(int64_t channels) {
  return (channels + cuda::kPack<T> - 1) / cuda::kPack<T>;
}

template <gs::Mode kMode, int kDims, typename T>
__global__ void __launch_bounds__(kThreads)
    Forward(gs::Problem<kDims> problem, const T* images, const float* grid, T* y, bool packed) {
  using One = Point<kMode, kDims>;
  const int64_t pieces = Pieces<T>(problem.channels), pixels = problem.pixels();
  const int64_t all = problem.batch * problem.points * pieces, stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < all; i += stride) {
    const int64_t place = i / pieces, channel = i % pieces * cuda::kPack<T>;
    const One point(problem, grid + place * kDims);
    const T* image = images + place / problem.points * pixels * problem.channels;
    cuda::Values<T> sums{};
#pragma unroll 4
    for (int t = 0; t < One::kPixels; ++t) {
      const int64_t pixel = point.Pixel(problem, t);
      const float weight = point.Weight(t);
      cuda::Values<T> values{};  // outside: zeros, so that a place that is NaN makes y NaN
      if (pixel >= 0) values = cuda::LoadValues(image + pixel * problem.channels, channel, problem.channels, packed);
#pragma unroll
      for (int j = 0; j < cuda::kPack<T>; ++j) sums.at[j] += weight * values.at[j];
    }
    cuda::StoreValues(sums, y + place * problem.channels, channel, problem.channels, packed);
  }
}

// `group` threads for each point, a power of two up to a warp.
template <gs::Mode kMode, int kDims, typename T>
__global__ void __launch_bounds__(kThreads) GridGradient(gs::Problem<kDims> problem, const T* dy, const T* images,
                                                         const float* grid, float* dgrid, int group, bool packed) {
  using One = Point<kMode, kDims>;
  const int64_t all = problem.batch * problem.points, pixels = problem.pixels();
  const int64_t stride = int64_t{gridDim.x} * kThreads / group;
  const int64_t lane = threadIdx.x % group, mine = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / group;
  // All threads of a warp stay to the end: they take part in sums.
  for (int64_t place = mine; place - mine % (cuda::kWarp / group) < all; place += stride) {
    float sums[kDims] = {};
    if (place < all) {
      const One point(problem, grid + place * kDims);
      const T* image = images + place / problem.points * pixels * problem.channels;
      for (int64_t c = lane * cuda::kPack<T>; kMode != gs::kNearest && c < problem.channels;
           c += group * cuda::kPack<T>) {
        const cuda::Values<T> above = cuda::LoadValues(dy + place * problem.channels, c, problem.channels, packed);
#pragma unroll 2
        for (int t = 0; t < One::kPixels; ++t) {
          const int64_t pixel = point.Pixel(problem, t);
          if (pixel < 0) continue;
          const cuda::Values<T> values =
              cuda::LoadValues(image + pixel * problem.channels, c, problem.channels, packed);
          float product = 0;
#pragma unroll
          for (int j = 0; j < cuda::kPack<T>; ++j) product += above.at[j] * values.at[j];
#pragma unroll
          for (int a = 0; a < kDims; ++a) sums[a] += product * point.Weight(t, a);
        }
      }
      if (point.nowhere()) {
        for (int a = 0; a < kDims; ++a) sums[a] = NAN;
      }
    }
    for (int offset = group / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int a = 0; a < kDims; ++a) sums[a] += __shfl_xor_sync(kAllLanes, sums[a], offset);
    }
    if (lane == 0 && place < all) {
      for (int a = 0; a < kDims; ++a) dgrid[place * kDims + kDims - 1 - a] = sums[a];
    }
  }
}

// The memory in which an image's gradient is added up.
struct Sums {
  unsigned long long* sums;    // of each number of dimages, in multiples of 2^-k
  uint32_t *rising, *falling;  // a bit for each: an infinite share came; both: NaN
  uint32_t* largest;           // of each image: the bits of the largest finite |dy|
};

// Blocks are given to images in turn.
template <typename T>
__global__ void __launch_bounds__(kThreads) Largest(const T* dy, int64_t images, int64_t each, uint32_t* largest) {
  const int64_t per_image = (each + kThreads - 1) / kThreads;
  for (int64_t block = blockIdx.x; block < images * per_image; block += gridDim.x) {
    const int64_t image = block / per_image, i = block % per_image * kThreads + threadIdx.x;
    uint32_t bits = i < each ? tftoolkit::FloatBits(tftoolkit::Load(dy[image * each + i])) & 0x7fffffffu : 0u;
    if (bits >= 0x7f800000u) bits = 0;
    for (int offset = cuda::kWarp / 2; offset > 0; offset /= 2) {
      bits = max(bits, __shfl_xor_sync(kAllLanes, bits, offset));
    }
    if (threadIdx.x % cuda::kWarp == 0 && bits > 0) atomicMax(&largest[image], bits);
  }
}

// k: |dy| < 2^(e + 1), weights of a point sum to less than 2, and `bits` hold the number of points.
__device__ double Scale(uint32_t largest, int bits, int sign) {
  const int e = static_cast<int>(largest >> 23) - 127;
  return ldexp(1.0, sign * (60 - e - bits));
}

template <gs::Mode kMode, int kDims, typename T>
__global__ void __launch_bounds__(kThreads)
    Scatter(gs::Problem<kDims> problem, const T* dy, const float* grid, Sums to, int bits, bool packed) {
  using One = Point<kMode, kDims>;
  const int64_t pieces = Pieces<T>(problem.channels), pixels = problem.pixels();
  const int64_t all = problem.batch * problem.points * pieces, stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < all; i += stride) {
    const int64_t place = i / pieces, channel = i % pieces * cuda::kPack<T>, image = place / problem.points;
    const One point(problem, grid + place * kDims);
    const cuda::Values<T> above = cuda::LoadValues(dy + place * problem.channels, channel, problem.channels, packed);
    const double scale = Scale(to.largest[image], bits, 1);
#pragma unroll 4
    for (int t = 0; t < One::kPixels; ++t) {
      const int64_t pixel = point.Pixel(problem, t);
      if (pixel < 0) continue;
      const float weight = point.Weight(t);
      const int64_t first = (image * pixels + pixel) * problem.channels + channel;
      for (int j = 0; j < cuda::kPack<T> && channel + j < problem.channels; ++j) {
        const float share = weight * above.at[j];
        const int64_t at = first + j;
        if (fabsf(share) < INFINITY) {
          atomicAdd(&to.sums[at], static_cast<unsigned long long>(llrint(share * scale)));
          continue;
        }
        const uint32_t bit = 1u << at % 32;
        if (!(share < 0)) atomicOr(&to.rising[at / 32], bit);
        if (!(share > 0)) atomicOr(&to.falling[at / 32], bit);
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) Finish(Sums from, int64_t each, int64_t all, int bits, T* dimages) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < all; i += stride) {
    const double scale = Scale(from.largest[i / each], bits, -1);
    float sum = static_cast<float>(static_cast<double>(static_cast<long long>(from.sums[i])) * scale);
    const uint32_t bit = 1u << i % 32;
    const bool rising = from.rising[i / 32] & bit, falling = from.falling[i / 32] & bit;
    if (rising || falling) sum = rising && falling ? NAN : rising ? INFINITY : -INFINITY;
    dimages[i] = tftoolkit::Store<T>(sum);
  }
}

unsigned Blocks(int64_t threads) { return tftoolkit::GridBlocks(cuda::Ceil(threads, kThreads), kMostBlocks); }

// run(mode, T()) as constants.
template <int kDims, typename Run>
ffi::Error WithKind(int32_t mode, ffi::DataType type, const Run& run) {
  return tftoolkit::WithFloatType("GridSample", type, [&](auto zero) {
    if (mode == gs::kNearest) return run(std::integral_constant<gs::Mode, gs::kNearest>(), zero);
    if constexpr (kDims == 2) {
      if (mode == gs::kBicubic) return run(std::integral_constant<gs::Mode, gs::kBicubic>(), zero);
    }
    return run(std::integral_constant<gs::Mode, gs::kBilinear>(), zero);
  });
}

template <int kDims>
ffi::Error Sample(cudaStream_t stream, ffi::AnyBuffer images, ffi::AnyBuffer grid, Result y, int32_t mode,
                  int32_t padding, int32_t space) {
  gs::Problem<kDims> problem;
  if (ffi::Error error = gs::Describe(images, grid, mode, padding, space, problem); error.failure()) return error;
  if (y->element_count() == 0) return ffi::Error::Success();
  return WithKind<kDims>(mode, images.element_type(), [&](auto kind, auto zero) {
    using T = decltype(zero);
    constexpr gs::Mode kMode = decltype(kind)::value;
    const T* from = Data<T>(images);
    T* to = Data<T>(y);
    const bool packed = cuda::Packed<T>(problem.channels, from, to);
    const int64_t threads = problem.batch * problem.points * Pieces<T>(problem.channels);
    Forward<kMode, kDims, T><<<Blocks(threads), kThreads, 0, stream>>>(problem, from, Data<float>(grid), to, packed);
    return cuda::Launched();
  });
}

// Zeros for all sums.
std::optional<Sums> MakeSums(cudaStream_t stream, ffi::ScratchAllocator& scratch, int64_t numbers, int64_t images) {
  const int64_t words = cuda::Ceil(numbers, 32);
  const int64_t bytes = 8 * numbers + 4 * (2 * words + images);
  const std::optional<void*> memory = scratch.Allocate(bytes);
  if (!memory) return std::nullopt;
  cudaMemsetAsync(*memory, 0, bytes, stream);
  auto* sums = static_cast<unsigned long long*>(*memory);
  auto* bits = reinterpret_cast<uint32_t*>(sums + numbers);
  return Sums{sums, bits, bits + words, bits + 2 * words};
}

template <gs::Mode kMode, int kDims, typename T>
ffi::Error ImageGradient(cudaStream_t stream, ffi::ScratchAllocator& scratch, const gs::Problem<kDims>& problem,
                         const T* dy, const float* grid, T* dimages) {
  const int64_t each = problem.pixels() * problem.channels, all = problem.batch * each;
  if (all == 0) return ffi::Error::Success();
  const std::optional<Sums> sums = MakeSums(stream, scratch, all, problem.batch);
  if (!sums) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory to add up the gradient of images");
  int bits = 0;
  while ((int64_t{1} << bits) < problem.points) ++bits;
  const int64_t above = problem.points * problem.channels;
  if (above > 0) {
    const int64_t blocks = problem.batch * cuda::Ceil(above, kThreads);
    Largest<T>
        <<<tftoolkit::GridBlocks(blocks, kMostBlocks), kThreads, 0, stream>>>(dy, problem.batch, above, sums->largest);
    const bool packed = cuda::Packed<T>(problem.channels, dy);
    const int64_t threads = problem.batch * problem.points * Pieces<T>(problem.channels);
    Scatter<kMode, kDims, T><<<Blocks(threads), kThreads, 0, stream>>>(problem, dy, grid, *sums, bits, packed);
  }
  Finish<T><<<Blocks(all), kThreads, 0, stream>>>(*sums, each, all, bits, dimages);
  return cuda::Launched();
}

template <int kDims>
ffi::Error SampleGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer dy, ffi::AnyBuffer images,
                      ffi::AnyBuffer grid, Result dimages, Result dgrid, int32_t mode, int32_t padding, int32_t space) {
  gs::Problem<kDims> problem;
  if (ffi::Error error = gs::Describe(images, grid, mode, padding, space, problem); error.failure()) return error;
  return WithKind<kDims>(mode, images.element_type(), [&](auto kind, auto zero) {
    using T = decltype(zero);
    constexpr gs::Mode kMode = decltype(kind)::value;
    const T *above = Data<T>(dy), *from = Data<T>(images);
    const float* coordinates = Data<float>(grid);
    if (const int64_t points = problem.batch * problem.points; points > 0) {
      int group = 1;
      while (group < cuda::kWarp && group < Pieces<T>(problem.channels)) group *= 2;
      const bool packed = cuda::Packed<T>(problem.channels, above, from);
      GridGradient<kMode, kDims, T><<<Blocks(points * group), kThreads, 0, stream>>>(problem, above, from, coordinates,
                                                                                     Data<float>(dgrid), group, packed);
      if (ffi::Error error = cuda::Launched(); error.failure()) return error;
    }
    return ImageGradient<kMode, kDims, T>(stream, scratch, problem, above, coordinates, Data<T>(dimages));
  });
}

}  // namespace

// Forward is command-buffer compatible: the same launch for the same shapes, so XLA may replay it as a CUDA graph.
#define TK_HANDLERS(kDims, Name)                                       \
  XLA_FFI_DEFINE_HANDLER(Name##Cuda, Sample<kDims>,                    \
                         ffi::Ffi::Bind()                              \
                             .Ctx<ffi::PlatformStream<cudaStream_t>>() \
                             .Arg<ffi::AnyBuffer>()                    \
                             .Arg<ffi::AnyBuffer>()                    \
                             .Ret<ffi::AnyBuffer>()                    \
                             .Attr<int32_t>("mode")                    \
                             .Attr<int32_t>("padding")                 \
                             .Attr<int32_t>("space"),                  \
                         {ffi::Traits::kCmdBufferCompatible});         \
  XLA_FFI_DEFINE_HANDLER(Name##GradCuda, SampleGrad<kDims>,            \
                         ffi::Ffi::Bind()                              \
                             .Ctx<ffi::PlatformStream<cudaStream_t>>() \
                             .Ctx<ffi::ScratchAllocator>()             \
                             .Arg<ffi::AnyBuffer>()                    \
                             .Arg<ffi::AnyBuffer>()                    \
                             .Arg<ffi::AnyBuffer>()                    \
                             .Ret<ffi::AnyBuffer>()                    \
                             .Ret<ffi::AnyBuffer>()                    \
                             .Attr<int32_t>("mode")                    \
                             .Attr<int32_t>("padding")                 \
                             .Attr<int32_t>("space"));                 \
  TK_KERNEL(Name, CUDA, Name##Cuda);                                   \
  TK_KERNEL(Name##Grad, CUDA, Name##GradCuda)
TK_HANDLERS(2, GridSample);
TK_HANDLERS(3, GridSample3d);
