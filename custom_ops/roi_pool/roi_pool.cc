// RoI pooling and its gradient on the CPU: the largest feature in each bin of each box, for each channel.
//
// The floor is memory traffic: the features under each box are read once, and the maxima written with their places, by
// which the gradient needs neither features nor a second search. Channels are the lanes of vectors; boxes are tasks.
//
// The gradient adds each number to one place. A task is a picture and a part of its channels, and goes through the
// boxes in their order; so no two tasks write to one place, and sums do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tftoolkit/box_indices.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Data;
using tftoolkit::Half;
using tftoolkit::Load;
using tftoolkit::Store;
using Result = ffi::Result<ffi::AnyBuffer>;

constexpr int64_t kElementsPerTask = 1 << 16;

struct Shape {
  int64_t height, width, channels, bins_y, bins_x;

  int64_t of_box() const { return bins_y * bins_x * channels; }
};

struct Range {
  int64_t begin, end;
};

// One axis of a box, in whole pixels, at least one.
struct Axis {
  float start, bin;
  int64_t length;

  Axis(float from, float to, float scale, int64_t bins, int64_t length)
      : start(std::round(from * scale)), length(length) {
    bin = std::max(std::round(to * scale) - start + 1.0f, 1.0f) / static_cast<float>(bins);
  }
  bool finite() const { return std::isfinite(start) && std::isfinite(bin); }

  // The pixels of a bin; those of neighbours may overlap. Numbers that are too large for integers stay floats.
  Range Bin(int64_t b) const {
    const float begin = std::floor(static_cast<float>(b) * bin) + start;
    const float end = std::ceil(static_cast<float>(b + 1) * bin) + start;
    return {Limited(begin), Limited(end)};
  }

 private:
  int64_t Limited(float x) const {
    return x > 0.0f ? (x < static_cast<float>(length) ? static_cast<int64_t>(x) : length) : 0;
  }
};

// Of the channels of one bin the largest values and their pixels, -1 where there is none. NaN is larger than all.
template <typename T>
TK_INLINE void MaxOfBin(const T* picture, Range rows, Range columns, const Shape& shape, T* y, int32_t* places) {
  for (int64_t c = 0; c < shape.channels; ++c) {
    y[c] = Store<T>(0.0f);
    places[c] = -1;
  }
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      const int32_t place = static_cast<int32_t>(row * shape.width + column);
      const T* from = picture + place * shape.channels;
#pragma omp simd
      for (int64_t c = 0; c < shape.channels; ++c) {
        const float value = Load(from[c]), before = Load(y[c]);
        const bool larger = (places[c] < 0) | (value > before) | ((value != value) & (before == before));
        y[c] = larger ? from[c] : y[c];
        places[c] = larger ? place : places[c];
      }
    }
  }
}

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_MAX(T)                                                                                            \
  TK_SIMD void Max(const T* picture, Range rows, Range columns, const Shape& shape, T* y, int32_t* places) { \
    MaxOfBin<T>(picture, rows, columns, shape, y, places);                                                   \
  }
TK_MAX(float)
TK_MAX(BFloat16)
TK_MAX(Half)

ffi::Error RoiPool(ffi::ThreadPool pool, ffi::AnyBuffer features, ffi::AnyBuffer boxes, ffi::AnyBuffer box_indices,
                   Result y, Result places, int64_t output_height, int64_t output_width, float spatial_scale) {
  if (output_height < 1 || output_width < 1) {
    return ffi::Error::InvalidArgument("output_size must be positive, but is " + std::to_string(output_height) + " x " +
                                       std::to_string(output_width));
  }
  const auto dims = features.dimensions();
  const Shape shape{dims[1], dims[2], dims[3], output_height, output_width};
  if (shape.width > 0 && shape.height > std::numeric_limits<int32_t>::max() / shape.width) {
    return ffi::Error::InvalidArgument("features may have 2^31 - 1 pixels, but have " + std::to_string(shape.height) +
                                       " x " + std::to_string(shape.width));
  }
  std::vector<int64_t> pictures;
  if (ffi::Error bad = tftoolkit::ReadBoxIndices("RoiPool", box_indices, dims[0], pictures); bad.failure()) return bad;
  const int64_t of_picture = shape.height * shape.width * shape.channels;
  const int64_t per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, shape.of_box()));
  return tftoolkit::WithFloatType("RoiPool", features.element_type(), [&](auto type) {
    using T = decltype(type);
    tftoolkit::ParallelRanges(pool, pictures.size(), per_task, [&](int64_t begin, int64_t count) {
      for (int64_t n = begin; n < begin + count; ++n) {
        const float* box = Data<float>(boxes) + 4 * n;
        const Axis rows(box[1], box[3], spatial_scale, shape.bins_y, shape.height);
        const Axis columns(box[0], box[2], spatial_scale, shape.bins_x, shape.width);
        T* to = Data<T>(y) + n * shape.of_box();
        int32_t* at = Data<int32_t>(places) + n * shape.of_box();
        if (!rows.finite() || !columns.finite()) {
          std::fill_n(to, shape.of_box(), Store<T>(std::numeric_limits<float>::quiet_NaN()));
          std::fill_n(at, shape.of_box(), -1);
          continue;
        }
        const T* picture = Data<T>(features) + pictures[n] * of_picture;
        for (int64_t bin = 0; bin < shape.bins_y * shape.bins_x; ++bin) {
          Max(picture, rows.Bin(bin / shape.bins_x), columns.Bin(bin % shape.bins_x), shape, to + bin * shape.channels,
              at + bin * shape.channels);
        }
      }
    });
    return ffi::Error::Success();
  });
}

// Channels [first, first + count) of the gradient of one picture.
template <typename T>
ffi::Error SpreadChannels(const T* dy, const int32_t* places, const std::vector<int64_t>& of_picture,
                          const Shape& shape, int64_t first, int64_t count, T* dfeatures) {
  const int64_t pixels = shape.height * shape.width;
  std::vector<float> sums(pixels * count);
  for (const int64_t n : of_picture) {
    for (int64_t bin = 0; bin < shape.bins_y * shape.bins_x; ++bin) {
      const int64_t at = n * shape.of_box() + bin * shape.channels + first;
      for (int64_t c = 0; c < count; ++c) {
        const int64_t place = places[at + c];
        if (place >= pixels) {
          return ffi::Error::InvalidArgument("places holds " + std::to_string(place) + ", but features have " +
                                             std::to_string(pixels) + " pixels");
        }
        if (place >= 0) sums[place * count + c] += Load(dy[at + c]);
      }
    }
  }
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < count; ++c) dfeatures[i * shape.channels + first + c] = Store<T>(sums[i * count + c]);
  }
  return ffi::Error::Success();
}

ffi::Error RoiPoolGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer places, ffi::AnyBuffer features,
                       ffi::AnyBuffer box_indices, Result dfeatures) {
  constexpr int64_t kChannels = 32;
  const auto dims = features.dimensions(), bins = dy.dimensions();
  const Shape shape{dims[1], dims[2], dims[3], bins[1], bins[2]};
  std::vector<int64_t> pictures;
  ffi::Error bad = tftoolkit::ReadBoxIndices("RoiPoolGrad", box_indices, dims[0], pictures);
  if (bad.failure()) return bad;
  std::vector<std::vector<int64_t>> of_picture(dims[0]);
  for (size_t n = 0; n < pictures.size(); ++n) of_picture[pictures[n]].push_back(n);
  const int64_t parts = (shape.channels + kChannels - 1) / kChannels;
  return tftoolkit::WithFloatType("RoiPoolGrad", dy.element_type(), [&](auto type) {
    using T = decltype(type);
    std::vector<ffi::Error> errors(dims[0] * parts, ffi::Error::Success());
    tftoolkit::ParallelFor(pool, dims[0] * parts, [&](int64_t task) {
      const int64_t picture = task / parts, first = task % parts * kChannels;
      T* to = Data<T>(dfeatures) + picture * shape.height * shape.width * shape.channels;
      errors[task] = SpreadChannels(Data<T>(dy), Data<int32_t>(places), of_picture[picture], shape, first,
                                    std::min(kChannels, shape.channels - first), to);
    });
    for (ffi::Error& error : errors) {
      if (error.failure()) return error;
    }
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(RoiPoolCpu, RoiPool,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<int64_t>("output_height")
                           .Attr<int64_t>("output_width")
                           .Attr<float>("spatial_scale"));

XLA_FFI_DEFINE_HANDLER(RoiPoolGradCpu, RoiPoolGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>());

TK_OP(RoiPool,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(features: T[batch height width channels], boxes: f32[n 4], box_indices: I[n], *, output_height: i64,"
      " output_width: i64, spatial_scale: f32 = 1.0) -> (y: T[n output_height output_width channels],"
      " places: i32[n output_height output_width channels])");
// Of the features only the shape counts.
TK_OP(RoiPoolGrad,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(dy: T[n bins_y bins_x channels], places: i32[n bins_y bins_x channels],"
      " features: T[batch height width channels], box_indices: I[n]) -> (dfeatures: T[batch height width channels])");
TK_KERNEL(RoiPool, CPU, RoiPoolCpu);
TK_KERNEL(RoiPoolGrad, CPU, RoiPoolGradCpu);
