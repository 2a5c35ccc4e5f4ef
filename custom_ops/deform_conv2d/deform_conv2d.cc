// Deformable convolution, version 2, and its gradients on the CPU:
//
//   y[pixel, o] = bias[o] + sum over points k and channels c of weight[k, c, o] mask[pixel, k] x(place(pixel, k), c)
//
// where x is interpolated between four pixels at a place that the offsets move, and 0 outside of the picture.
//
// The floor is arithmetic, 2 K C O operations for each pixel of y, and three times that with gradients, beside which
// the interpolation (8 operations for each of the K C columns of a pixel) is little when there are many outputs O.
// Columns are made for a tile of 96 pixels and up to 64 channels at a time, multiplied from the caches (gemm.h), and
// forgotten; they never exist as a whole, which would be K times x.
//
// Gradients: a task is a chunk of channels of some pictures; it makes the columns and the gradients by them, adds the
// latter to the pixels where they came from, which no other task does, and multiplies the former by dy for the weight.
// What chunks and sets of pictures add up is added in their order, so results do not depend on the number of threads.
//
// problem.h: what is computed; cut.h: how it is cut; kernels.h: the passes over tiles.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cut.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/isa.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/scratch.h"

namespace {

using tftoolkit::Data;
using tftoolkit::Isa;
using namespace tftoolkit::deform;
using Result = ffi::Result<ffi::AnyBuffer>;

#define TK_LANES 4
namespace baseline {
#include "tftoolkit/gemm.h"
//
#include "tftoolkit/packing.h"
//
#include "kernels.h"
}  // namespace baseline
#undef TK_LANES

#ifdef TK_HAS_ISAS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TK_LANES 8
namespace avx2 {
#include "tftoolkit/gemm.h"
//
#include "tftoolkit/packing.h"
//
#include "kernels.h"
}  // namespace avx2
#undef TK_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define TK_LANES 16
namespace avx512 {
#include "tftoolkit/gemm.h"
//
#include "tftoolkit/packing.h"
//
#include "kernels.h"
}  // namespace avx512
#undef TK_LANES
#pragma GCC pop_options
#endif

void Forward(ffi::ThreadPool& pool, Problem& p, void* y) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) return avx512::Forward(pool, p, y);
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Forward(pool, p, y);
#endif
  baseline::Forward(pool, p, y);
}

void Backward(ffi::ThreadPool& pool, Problem& p, Gradients& gradients) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) return avx512::Backward(pool, p, gradients);
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Backward(pool, p, gradients);
#endif
  baseline::Backward(pool, p, gradients);
}

ffi::Error DeformConv2d(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer offset, ffi::AnyBuffer weight,
                        ffi::AnyBuffer bias, ffi::AnyBuffer mask, Result y, int64_t dilation_x, int64_t dilation_y,
                        bool has_bias, bool has_mask, int64_t padding_x, int64_t padding_y, int64_t stride_x,
                        int64_t stride_y) {
  Problem p;
  const ffi::AnyBuffer* given = has_mask ? &mask : nullptr;
  ffi::Error wrong =
      MakeProblem(x, offset, weight, given, {stride_y, padding_y, dilation_y}, {stride_x, padding_x, dilation_x}, p);
  if (wrong.failure() || y->element_count() == 0) return wrong;
  if (has_bias) {
    p.bias.resize(p.shape.out_channels);
    tftoolkit::WithType(p.type, [&](auto zero) {
      const auto* from = Data<decltype(zero)>(bias);
      for (size_t i = 0; i < p.bias.size(); ++i) p.bias[i] = tftoolkit::Load(from[i]);
    });
  }
  Forward(pool, p, y->untyped_data());
  return ffi::Error::Success();
}

// The sums of dy over all pixels.
template <typename T>
void SumBias(ffi::ThreadPool& pool, const T* dy, int64_t pixels, int64_t channels, T* dbias) {
  constexpr int64_t kAtOnce = 64;
  tftoolkit::ParallelRanges(pool, channels, kAtOnce, [&](int64_t first, int64_t count) {
    double sums[kAtOnce] = {};
    for (int64_t i = 0; i < pixels; ++i) {
      for (int64_t c = 0; c < count; ++c) sums[c] += tftoolkit::Load(dy[i * channels + first + c]);
    }
    for (int64_t c = 0; c < count; ++c) dbias[first + c] = tftoolkit::Store<T>(static_cast<float>(sums[c]));
  });
}

// What the chunks of an offset group found of its points, added up.
template <typename T>
void StorePoints(const Problem& p, const Gradients& g, int64_t pixel, T* doffset, T* dmask) {
  const int64_t points = p.shape.points(), all = p.shape.offset_groups * points;
  std::vector<PointGradient> sums(all);
  for (size_t c = 0; c < p.chunks.size(); ++c) {
    for (int64_t k = 0; k < points; ++k) {
      sums[p.chunks[c].offset_group * points + k].Add(g.of_points[c][pixel * points + k]);
    }
  }
  for (int64_t i = 0; i < all; ++i) {
    doffset[2 * (pixel * all + i)] = tftoolkit::Store<T>(sums[i].y);
    doffset[2 * (pixel * all + i) + 1] = tftoolkit::Store<T>(sums[i].x);
    if (dmask != nullptr) dmask[pixel * all + i] = tftoolkit::Store<T>(sums[i].mask);
  }
}

ffi::Error DeformConv2dGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer x, ffi::AnyBuffer offset,
                            ffi::AnyBuffer weight, ffi::AnyBuffer mask, Result dx, Result doffset, Result dweight,
                            Result dbias, Result dmask, int64_t dilation_x, int64_t dilation_y, bool has_dmask,
                            bool masked, int64_t padding_x, int64_t padding_y, int64_t stride_x, int64_t stride_y) {
  if (has_dmask && !masked) return Wrong("has_dmask=True needs masked=True");
  Problem p;
  const ffi::AnyBuffer* given = masked ? &mask : nullptr;
  ffi::Error wrong =
      MakeProblem(x, offset, weight, given, {stride_y, padding_y, dilation_y}, {stride_x, padding_x, dilation_x}, p);
  if (wrong.failure()) return wrong;
  const int64_t pixels = p.shape.batch * p.shape.pixels();
  Gradients g{dy.untyped_data(), dx->untyped_data(), dweight->untyped_data(), {}};
  g.of_points.assign(p.chunks.size(), std::vector<PointGradient>(pixels * p.shape.points()));
  Backward(pool, p, g);
  return tftoolkit::WithFloatType("DeformConv2dGrad", x.element_type(), [&](auto type) {
    using T = decltype(type);
    SumBias(pool, Data<T>(dy), pixels, p.shape.out_channels, Data<T>(dbias));
    tftoolkit::ParallelRanges(pool, pixels, kTilePixels, [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) {
        StorePoints(p, g, i, Data<T>(doffset), has_dmask ? Data<T>(dmask) : nullptr);
      }
    });
    return ffi::Error::Success();
  });
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

XLA_FFI_DEFINE_HANDLER(DeformConv2dCpu, DeformConv2d,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT.Attr<int64_t>("dilation_x")
                           .Attr<int64_t>("dilation_y")
                           .Attr<bool>("has_bias")
                           .Attr<bool>("has_mask")
                           .Attr<int64_t>("padding_x")
                           .Attr<int64_t>("padding_y")
                           .Attr<int64_t>("stride_x")
                           .Attr<int64_t>("stride_y"));

XLA_FFI_DEFINE_HANDLER(DeformConv2dGradCpu, DeformConv2dGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT TK_OUT
                           .Attr<int64_t>("dilation_x")
                           .Attr<int64_t>("dilation_y")
                           .Attr<bool>("has_dmask")
                           .Attr<bool>("masked")
                           .Attr<int64_t>("padding_x")
                           .Attr<int64_t>("padding_y")
                           .Attr<int64_t>("stride_x")
                           .Attr<int64_t>("stride_y"));

#define TK_STEPS                                                                                       \
  "stride_y: i64 = 1, stride_x: i64 = 1, padding_y: i64 = 0, padding_x: i64 = 0, dilation_y: i64 = 1," \
  " dilation_x: i64 = 1"

TK_OP(DeformConv2d,
      "<T: f32 | bf16 | f16>"
      "(x: T[batch height width channels], offset: T[batch out_height out_width offsets],"
      " weight: T[kernel_height kernel_width group_channels out_channels], bias?: T[out_channels],"
      " mask?: T[batch out_height out_width points], *, " TK_STEPS
      ") -> (y: T[batch out_height out_width out_channels])");
// `masked`: the mask counts. It is no optional input, since the shape of an output follows from it.
TK_OP(DeformConv2dGrad,
      "<T: f32 | bf16 | f16>"
      "(dy: T[batch out_height out_width out_channels], x: T[batch height width channels],"
      " offset: T[batch out_height out_width offsets],"
      " weight: T[kernel_height kernel_width group_channels out_channels],"
      " mask: T[batch out_height out_width points], *, masked: bool, " TK_STEPS
      ") -> (dx: T[batch height width channels], doffset: T[batch out_height out_width offsets],"
      " dweight: T[kernel_height kernel_width group_channels out_channels], dbias: T[out_channels],"
      " dmask?: T[batch out_height out_width points])");
TK_KERNEL(DeformConv2d, CPU, DeformConv2dCpu);
TK_KERNEL(DeformConv2dGrad, CPU, DeformConv2dGradCpu);
