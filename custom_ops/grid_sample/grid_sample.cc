// Images sampled at the points of a grid, in 2-D and 3-D, and the gradients of both, on the CPU:
//
//   y[p] = sum over pixels i of w_i(grid[p]) images[i]
//   dimages[i] = sum over points p of w_i(grid[p]) dy[p]        dgrid[p] = sum over i of w_i'(grid[p]) <dy[p],
//   images[i]>
//
// w is 1 at the nearest pixel, linear in each coordinate of 2^dims pixels, or cubic in those of 16; places.h has which.
//
// The floor is memory traffic: forward reads grid and images and writes y once, backward reads dy, grid and images and
// writes dimages and dgrid once. What is moved comes close to it where neighbours of a point are neighbours in the
// image, and so still in the cache; per point some 10 ns of arithmetic on places and weights come on top, which rule
// where there are few channels.
//
// An image's gradient is added up without atomics: a task owns a band of an image and goes through all points of it, in
// their order. Each sum is thus the same for any number of bands, and for any number of threads. As many bands are cut
// as keep the threads busy, since each computes all places again.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

#include "points.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")  // places are the same on every machine, and those of the reference
#endif

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Data;
using tftoolkit::Half;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace gs = tftoolkit::grid_sample;

constexpr int64_t kValuesPerTask = 1 << 14;  // of y: tens of µs

template <gs::Mode kMode>
using Tag = std::integral_constant<gs::Mode, kMode>;

// Plain functions for each mode and number of dimensions, and for each number of pixels and dtype: run-time dispatch
// needs functions, not templates.
#define TK_SHARES(kMode, kDims)                                                                          \
  TK_SIMD void SharesOf(Tag<kMode>, const gs::Problem<kDims>& problem, const float* grid, int64_t count, \
                        gs::Shares<gs::Power(gs::Taps(kMode), kDims)>* shares,                           \
                        gs::Slopes<gs::Power(gs::Taps(kMode), kDims), kDims>* slopes) {                  \
    gs::SharesOf<kMode>(problem, grid, count, shares, slopes);                                           \
  }
TK_SHARES(gs::kNearest, 2)
TK_SHARES(gs::kBilinear, 2)
TK_SHARES(gs::kBicubic, 2)
TK_SHARES(gs::kNearest, 3)
TK_SHARES(gs::kBilinear, 3)

#define TK_PIXELS(kPixels, T)                                                                                          \
  TK_SIMD void Blend(const gs::Shares<kPixels>& shares, const T* image, int64_t values, const T* zeros, int64_t count, \
                     int64_t size, T* y) {                                                                             \
    gs::Blend(shares, image, values, zeros, count, size, y);                                                           \
  }                                                                                                                    \
  TK_SIMD void Products(const gs::Shares<kPixels>& shares, const T* image, int64_t values, const T* dy, int64_t count, \
                        int64_t size, float(*products)[gs::kChunk]) {                                                  \
    gs::Products(shares, image, values, dy, count, size, products);                                                    \
  }                                                                                                                    \
  TK_SIMD void Spread(const gs::Shares<kPixels>& shares, const T* dy, int64_t count, int64_t size, int64_t begin,      \
                      int64_t end, float* sums) {                                                                      \
    gs::Spread(shares, dy, count, size, begin, end, sums);                                                             \
  }
#define TK_TYPES(kPixels)      \
  TK_PIXELS(kPixels, float)    \
  TK_PIXELS(kPixels, BFloat16) \
  TK_PIXELS(kPixels, Half)
TK_TYPES(1)
TK_TYPES(4)
TK_TYPES(8)
TK_TYPES(16)

// run(tag, T()) for a mode and a dtype.
template <int kDims, typename Run>
ffi::Error WithKind(int32_t mode, ffi::DataType type, const Run& run) {
  return tftoolkit::WithFloatType("GridSample", type, [&](auto zero) {
    if (mode == gs::kNearest) return run(Tag<gs::kNearest>(), zero);
    if constexpr (kDims == 2) {
      if (mode == gs::kBicubic) return run(Tag<gs::kBicubic>(), zero);
    }
    return run(Tag<gs::kBilinear>(), zero);
  });
}

// chunk(image, point, count) for all points of all images, at most kChunk of an image at a time. No template: there are
// fifteen kinds of chunks.
void OverPoints(ffi::ThreadPool& pool, int64_t images, int64_t points, int64_t channels,
                const std::function<void(int64_t, int64_t, int64_t)>& chunk) {
  const int64_t per_task =
      std::max<int64_t>(1, kValuesPerTask / std::max<int64_t>(1, channels) / gs::kChunk) * gs::kChunk;
  const int64_t ranges = (points + per_task - 1) / per_task;
  tftoolkit::ParallelFor(pool, images * ranges, [&](int64_t task) {
    const int64_t begin = task % ranges * per_task, end = std::min(points, begin + per_task);
    for (int64_t point = begin; point < end; point += gs::kChunk) {
      chunk(task / ranges, point, std::min(gs::kChunk, end - point));
    }
  });
}

template <int kDims>
ffi::Error Sample(ffi::ThreadPool pool, ffi::AnyBuffer images, ffi::AnyBuffer grid, Result y, int32_t mode,
                  int32_t padding, int32_t space) {
  gs::Problem<kDims> problem;
  if (ffi::Error error = gs::Describe(images, grid, mode, padding, space, problem); error.failure()) return error;
  return WithKind<kDims>(mode, images.element_type(), [&](auto tag, auto zero) {
    using T = decltype(zero);
    const std::vector<T> zeros(problem.channels);
    const int64_t in = problem.pixels() * problem.channels;
    OverPoints(pool, problem.batch, problem.points, problem.channels, [&](int64_t image, int64_t point, int64_t count) {
      const int64_t first = image * problem.points + point;
      gs::Shares<gs::Power(gs::Taps(decltype(tag)::value), kDims)> shares;
      SharesOf(tag, problem, Data<float>(grid) + first * kDims, count, &shares, nullptr);
      Blend(shares, Data<T>(images) + image * in, in, zeros.data(), count, problem.channels,
            Data<T>(y) + first * problem.channels);
    });
    return ffi::Error::Success();
  });
}

template <int kDims, typename Tag, typename T>
void GridGradient(ffi::ThreadPool& pool, Tag tag, const gs::Problem<kDims>& problem, const T* dy, const T* images,
                  const float* grid, float* dgrid) {
  constexpr int kPixels = gs::Power(gs::Taps(Tag::value), kDims);
  const int64_t in = problem.pixels() * problem.channels;
  OverPoints(pool, problem.batch, problem.points, problem.channels, [&](int64_t image, int64_t point, int64_t count) {
    const int64_t first = image * problem.points + point;
    gs::Shares<kPixels> shares;
    gs::Slopes<kPixels, kDims> slopes;
    SharesOf(tag, problem, grid + first * kDims, count, &shares, &slopes);
    float products[kPixels][gs::kChunk] = {};
    if (tag != gs::kNearest) {  // its slopes are 0
      Products(shares, images + image * in, in, dy + first * problem.channels, count, problem.channels, products);
    }
    for (int a = 0; a < kDims; ++a) {
      float sums[gs::kChunk] = {};
      for (int t = 0; t < kPixels; ++t) {
        for (int64_t i = 0; i < gs::kChunk; ++i) sums[i] += products[t][i] * slopes.by[a][t][i];
      }
      for (int64_t i = 0; i < count; ++i) dgrid[(first + i) * kDims + a] = sums[i];
    }
  });
}

// Adds to the gradient of an image what all its points say of the pixels from `begin` to `end`.
template <int kDims, typename Tag, typename T>
void AddShares(Tag tag, const gs::Problem<kDims>& problem, const T* dy, const float* grid, int64_t begin, int64_t end,
               float* sums) {
  gs::Shares<gs::Power(gs::Taps(Tag::value), kDims)> shares;
  for (int64_t point = 0; point < problem.points; point += gs::kChunk) {
    const int64_t count = std::min(gs::kChunk, problem.points - point);
    SharesOf(tag, problem, grid + point * kDims, count, &shares, nullptr);
    Spread(shares, dy + point * problem.channels, count, problem.channels, begin * problem.channels,
           end * problem.channels, sums);
  }
}

// band(image, begin, end) for whole slices of the first axis of each image.
void OverBands(ffi::ThreadPool& pool, int64_t images, int64_t slices,
               const std::function<void(int64_t, int64_t, int64_t)>& band) {
  const int64_t wanted = (pool.num_threads() + images - 1) / std::max<int64_t>(1, images);
  const int64_t bands = std::max<int64_t>(1, std::min(wanted, slices));
  tftoolkit::ParallelFor(pool, images * bands, [&](int64_t task) {
    const int64_t i = task % bands;
    band(task / bands, i * slices / bands, (i + 1) * slices / bands);
  });
}

template <int kDims, typename Tag, typename T>
void ImageGradient(ffi::ThreadPool& pool, Tag tag, const gs::Problem<kDims>& problem, const T* dy, const float* grid,
                   T* dimages) {
  const int64_t slices = problem.axes[0].size, pixels = problem.pixels(), slice = slices ? pixels / slices : 0;
  OverBands(pool, problem.batch, slices, [&](int64_t image, int64_t from, int64_t to) {
    const int64_t begin = from * slice, end = to * slice, size = (end - begin) * problem.channels;
    const T* above = dy + image * problem.points * problem.channels;
    const float* coordinates = grid + image * problem.points * kDims;
    T* gradient = dimages + (image * pixels + begin) * problem.channels;
    if constexpr (std::is_same_v<T, float>) {
      std::fill_n(gradient, size, 0.0f);
      AddShares(tag, problem, above, coordinates, begin, end, gradient);
    } else {
      std::vector<float> sums(size);
      AddShares(tag, problem, above, coordinates, begin, end, sums.data());
      std::transform(sums.begin(), sums.end(), gradient, [](float sum) { return tftoolkit::Store<T>(sum); });
    }
  });
}

template <int kDims>
ffi::Error SampleGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer images, ffi::AnyBuffer grid,
                      Result dimages, Result dgrid, int32_t mode, int32_t padding, int32_t space) {
  gs::Problem<kDims> problem;
  if (ffi::Error error = gs::Describe(images, grid, mode, padding, space, problem); error.failure()) return error;
  return WithKind<kDims>(mode, images.element_type(), [&](auto tag, auto zero) {
    using T = decltype(zero);
    GridGradient(pool, tag, problem, Data<T>(dy), Data<T>(images), Data<float>(grid), Data<float>(dgrid));
    ImageGradient(pool, tag, problem, Data<T>(dy), Data<float>(grid), Data<T>(dimages));
    return ffi::Error::Success();
  });
}

}  // namespace

#define TK_HANDLERS(kDims, Name)                           \
  XLA_FFI_DEFINE_HANDLER(Name##Cpu, Sample<kDims>,         \
                         ffi::Ffi::Bind()                  \
                             .Ctx<ffi::ThreadPool>()       \
                             .Arg<ffi::AnyBuffer>()        \
                             .Arg<ffi::AnyBuffer>()        \
                             .Ret<ffi::AnyBuffer>()        \
                             .Attr<int32_t>("mode")        \
                             .Attr<int32_t>("padding")     \
                             .Attr<int32_t>("space"));     \
  XLA_FFI_DEFINE_HANDLER(Name##GradCpu, SampleGrad<kDims>, \
                         ffi::Ffi::Bind()                  \
                             .Ctx<ffi::ThreadPool>()       \
                             .Arg<ffi::AnyBuffer>()        \
                             .Arg<ffi::AnyBuffer>()        \
                             .Arg<ffi::AnyBuffer>()        \
                             .Ret<ffi::AnyBuffer>()        \
                             .Ret<ffi::AnyBuffer>()        \
                             .Attr<int32_t>("mode")        \
                             .Attr<int32_t>("padding")     \
                             .Attr<int32_t>("space"));     \
  TK_KERNEL(Name, CPU, Name##Cpu);                         \
  TK_KERNEL(Name##Grad, CPU, Name##GradCpu)
TK_HANDLERS(2, GridSample);
TK_HANDLERS(3, GridSample3d);

#define TK_OPTIONS "*, mode: i32 = 1, padding: i32 = 0, space: i32 = 0)"
TK_OP(GridSample,
      "<T: f32 | bf16 | f16>(images: T[batch height width channels], grid: f32[batch rows columns 2], " TK_OPTIONS
      " -> (y: T[batch rows columns channels])");
TK_OP(GridSampleGrad,
      "<T: f32 | bf16 | f16>(dy: T[batch rows columns channels], images: T[batch height width channels],"
      " grid: f32[batch rows columns 2], " TK_OPTIONS
      " -> (dimages: T[batch height width channels], dgrid: f32[batch rows columns 2])");
TK_OP(GridSample3d,
      "<T: f32 | bf16 | f16>(images: T[batch depth height width channels], grid: f32[batch slices rows columns "
      "3], " TK_OPTIONS " -> (y: T[batch slices rows columns channels])");
TK_OP(GridSample3dGrad,
      "<T: f32 | bf16 | f16>(dy: T[batch slices rows columns channels], images: T[batch depth height width channels],"
      " grid: f32[batch slices rows columns 3], " TK_OPTIONS
      " -> (dimages: T[batch depth height width channels], dgrid: f32[batch slices rows columns 3])");
