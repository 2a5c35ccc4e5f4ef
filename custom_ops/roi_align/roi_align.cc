// RoIAlign and its gradient on the CPU. A bin of a box is the mean of samples, each interpolated between four pixels:
//
//   y[bin] = 1 / count * sum over samples (a, b) of sum over pixels of w(a, row) w(b, column) features[row, column]
//
// Weights are products of one for the row and one for the column, so the sums over samples can be taken first: a bin is
// a sum over the pixels that it touches, each with one weight, rather than over four pixels for every sample. Bins of
// 1 to 2 pixels, with 2 x 2 samples, touch some 9 pixels instead of reading 16. Of each pixel all channels are read at
// once; they are the lanes of vectors. Floor: the features under the boxes are read, and y is written, once.
//
// The gradient: bands of rows are tasks; each goes through the boxes of its picture in their order and takes what
// belongs to its rows. So no two tasks write to one place, and sums do not depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "samples.h"
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
using tftoolkit::roi_align::Axis;
using tftoolkit::roi_align::Options;
using tftoolkit::roi_align::Range;
using tftoolkit::roi_align::Sample;
using Result = ffi::Result<ffi::AnyBuffer>;

constexpr int64_t kElementsPerTask = 1 << 16;

struct Entry {
  int64_t pixel;
  float weight;
};

// The pixels that each bin of an axis touches, with the sum of their weights.
class Touched {
 public:
  void Find(const Axis& axis) {
    entries_.clear();
    begins_.assign(1, 0);
    for (int64_t b = 0; b < axis.bins; ++b) {
      const Range range = axis.Inside(b);
      for (int64_t i = range.begin; i < range.end; ++i) {
        Sample sample;
        if (!axis.Read(b, i, sample)) continue;
        Add(sample.low, sample.low_weight);
        if (sample.high != sample.low) Add(sample.high, sample.high_weight);
      }
      begins_.push_back(entries_.size());
    }
  }
  const Entry* begin(int64_t bin) const { return entries_.data() + begins_[bin]; }
  const Entry* end(int64_t bin) const { return entries_.data() + begins_[bin + 1]; }

 private:
  // Samples go one way, so what was touched before is one of the last two.
  void Add(int64_t pixel, float weight) {
    const size_t in_bin = entries_.size() - begins_.back();
    for (size_t back = 1; back <= std::min<size_t>(in_bin, 2); ++back) {
      Entry& entry = entries_[entries_.size() - back];
      if (entry.pixel == pixel) {
        entry.weight += weight;
        return;
      }
    }
    entries_.push_back({pixel, weight});
  }

  std::vector<Entry> entries_;
  std::vector<size_t> begins_;
};

// A box, its picture, and what it touches there.
struct Shape {
  int64_t height, width, channels, bins_y, bins_x;

  int64_t bins() const { return bins_y * bins_x; }
};

struct TouchedBox {
  Touched y, x;
  float scale;

  void Find(const Axis& along_y, const Axis& along_x) {
    y.Find(along_y);
    x.Find(along_x);
    scale = 1.0f / tftoolkit::roi_align::Count(along_y, along_x);
  }
};

constexpr int64_t kBlock = 32;  // channels whose sums are kept in registers

template <typename T>
TK_INLINE void SumBlock(const T* picture, const TouchedBox& box, int64_t bin_y, int64_t bin_x, const Shape& shape,
                        int64_t channels, T* out) {
  float sums[kBlock] = {};
  for (const Entry* y = box.y.begin(bin_y); y != box.y.end(bin_y); ++y) {
    for (const Entry* x = box.x.begin(bin_x); x != box.x.end(bin_x); ++x) {
      const float weight = y->weight * x->weight;
      const T* from = picture + (y->pixel * shape.width + x->pixel) * shape.channels;
      if (channels == kBlock) {
#pragma omp simd
        for (int64_t c = 0; c < kBlock; ++c) sums[c] += weight * Load(from[c]);
      } else {
        for (int64_t c = 0; c < channels; ++c) sums[c] += weight * Load(from[c]);
      }
    }
  }
  for (int64_t c = 0; c < channels; ++c) out[c] = Store<T>(sums[c] * box.scale);
}

template <typename T>
TK_INLINE void SumBox(const T* picture, const TouchedBox& box, const Shape& shape, T* out) {
  for (int64_t bin = 0; bin < shape.bins(); ++bin, out += shape.channels) {
    for (int64_t c = 0; c < shape.channels; c += kBlock) {
      SumBlock(picture + c, box, bin / shape.bins_x, bin % shape.bins_x, shape, std::min(kBlock, shape.channels - c),
               out + c);
    }
  }
}

// Adds a box's gradient to the rows [first, first + count) of a picture's, in `sums`.
template <typename T>
TK_INLINE void SpreadBox(const T* dy, const TouchedBox& box, const Shape& shape, int64_t first, int64_t count,
                         float* sums) {
  for (int64_t bin = 0; bin < shape.bins(); ++bin, dy += shape.channels) {
    const int64_t bin_y = bin / shape.bins_x, bin_x = bin % shape.bins_x;
    for (const Entry* y = box.y.begin(bin_y); y != box.y.end(bin_y); ++y) {
      if (y->pixel < first || y->pixel >= first + count) continue;
      for (const Entry* x = box.x.begin(bin_x); x != box.x.end(bin_x); ++x) {
        const float weight = y->weight * x->weight * box.scale;
        float* to = sums + ((y->pixel - first) * shape.width + x->pixel) * shape.channels;
#pragma omp simd
        for (int64_t c = 0; c < shape.channels; ++c) to[c] += weight * Load(dy[c]);
      }
    }
  }
}

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_BOXES(T)                                                                                         \
  TK_SIMD void Sum(const T* picture, const TouchedBox& box, const Shape& shape, T* out) {                   \
    SumBox<T>(picture, box, shape, out);                                                                    \
  }                                                                                                         \
  TK_SIMD void Spread(const T* dy, const TouchedBox& box, const Shape& shape, int64_t first, int64_t count, \
                      float* sums) {                                                                        \
    SpreadBox<T>(dy, box, shape, first, count, sums);                                                       \
  }
TK_BOXES(float)
TK_BOXES(BFloat16)
TK_BOXES(Half)

struct BoxAxes {
  Axis y, x;

  BoxAxes(const float* box, const Shape& shape, const Options& options)
      : y(box[1], box[3], shape.bins_y, shape.height, options), x(box[0], box[2], shape.bins_x, shape.width, options) {}
};

ffi::Error RoiAlign(ffi::ThreadPool pool, ffi::AnyBuffer features, ffi::AnyBuffer boxes, ffi::AnyBuffer box_indices,
                    Result y, bool aligned, int64_t output_height, int64_t output_width, int64_t sampling_ratio,
                    float spatial_scale) {
  ffi::Error wrong = tftoolkit::roi_align::Check(output_height, output_width, sampling_ratio);
  if (wrong.failure()) return wrong;
  const auto dims = features.dimensions();
  std::vector<int64_t> pictures;
  if (ffi::Error bad = tftoolkit::ReadBoxIndices("RoiAlign", box_indices, dims[0], pictures); bad.failure()) return bad;
  const Shape shape{dims[1], dims[2], dims[3], output_height, output_width};
  const Options options{spatial_scale, sampling_ratio, aligned};
  const int64_t of_picture = shape.height * shape.width * shape.channels, of_box = shape.bins() * shape.channels;
  const int64_t per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, of_box));
  return tftoolkit::WithFloatType("RoiAlign", features.element_type(), [&](auto type) {
    using T = decltype(type);
    tftoolkit::ParallelRanges(pool, pictures.size(), per_task, [&](int64_t begin, int64_t count) {
      TouchedBox touched;
      for (int64_t n = begin; n < begin + count; ++n) {
        T* out = Data<T>(y) + n * of_box;
        const BoxAxes axes(Data<float>(boxes) + 4 * n, shape, options);
        if (!axes.y.finite() || !axes.x.finite()) {
          std::fill_n(out, of_box, Store<T>(std::numeric_limits<float>::quiet_NaN()));
          continue;
        }
        touched.Find(axes.y, axes.x);
        Sum(Data<T>(features) + pictures[n] * of_picture, touched, shape, out);
      }
    });
    return ffi::Error::Success();
  });
}

// The rows [first, first + count) of a picture's gradient, into `sums`.
template <typename T>
void SpreadInto(const T* dy, const float* boxes, const std::vector<int64_t>& of_picture, const Shape& shape,
                const Options& options, int64_t first, int64_t count, float* sums) {
  TouchedBox touched;
  std::fill_n(sums, count * shape.width * shape.channels, 0.0f);
  for (const int64_t n : of_picture) {
    const BoxAxes axes(boxes + 4 * n, shape, options);
    if (!axes.y.finite() || !axes.x.finite()) continue;
    const Range rows = axes.y.Pixels();
    if (rows.end <= first || rows.begin >= first + count) continue;
    touched.Find(axes.y, axes.x);
    Spread(dy + n * shape.bins() * shape.channels, touched, shape, first, count, sums);
  }
}

ffi::Error RoiAlignGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer features, ffi::AnyBuffer boxes,
                        ffi::AnyBuffer box_indices, Result dfeatures, bool aligned, int64_t sampling_ratio,
                        float spatial_scale) {
  const auto dims = features.dimensions(), bins = dy.dimensions();
  ffi::Error wrong = tftoolkit::roi_align::Check(bins[1], bins[2], sampling_ratio);
  if (wrong.failure()) return wrong;
  std::vector<int64_t> pictures;
  wrong = tftoolkit::ReadBoxIndices("RoiAlignGrad", box_indices, dims[0], pictures);
  if (wrong.failure()) return wrong;
  std::vector<std::vector<int64_t>> of_picture(dims[0]);
  for (size_t n = 0; n < pictures.size(); ++n) of_picture[pictures[n]].push_back(n);
  const Shape shape{dims[1], dims[2], dims[3], bins[1], bins[2]};
  const Options options{spatial_scale, sampling_ratio, aligned};
  const int64_t row = shape.width * shape.channels;
  const int64_t rows = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, row));
  const int64_t bands = (shape.height + rows - 1) / rows;
  return tftoolkit::WithFloatType("RoiAlignGrad", features.element_type(), [&](auto type) {
    using T = decltype(type);
    tftoolkit::ParallelFor(pool, dims[0] * bands, [&](int64_t task) {
      const int64_t picture = task / bands, first = task % bands * rows, count = std::min(rows, shape.height - first);
      T* out = Data<T>(dfeatures) + (picture * shape.height + first) * row;
      const auto spread = [&](float* sums) {
        SpreadInto(Data<T>(dy), Data<float>(boxes), of_picture[picture], shape, options, first, count, sums);
      };
      if constexpr (std::is_same_v<T, float>) {
        spread(out);
      } else {
        std::vector<float> sums(count * row);
        spread(sums.data());
        for (int64_t i = 0; i < count * row; ++i) out[i] = Store<T>(sums[i]);
      }
    });
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(RoiAlignCpu, RoiAlign,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("aligned")
                           .Attr<int64_t>("output_height")
                           .Attr<int64_t>("output_width")
                           .Attr<int64_t>("sampling_ratio")
                           .Attr<float>("spatial_scale"));

XLA_FFI_DEFINE_HANDLER(RoiAlignGradCpu, RoiAlignGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("aligned")
                           .Attr<int64_t>("sampling_ratio")
                           .Attr<float>("spatial_scale"));

TK_OP(RoiAlign,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(features: T[batch height width channels], boxes: f32[n 4], box_indices: I[n], *, output_height: i64,"
      " output_width: i64, spatial_scale: f32 = 1.0, sampling_ratio: i64 = -1, aligned: bool = true)"
      " -> (y: T[n output_height output_width channels])");
// Of the features only the shape counts.
TK_OP(RoiAlignGrad,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(dy: T[n bins_y bins_x channels], features: T[batch height width channels], boxes: f32[n 4],"
      " box_indices: I[n], *, spatial_scale: f32 = 1.0, sampling_ratio: i64 = -1, aligned: bool = true)"
      " -> (dfeatures: T[batch height width channels])");
TK_KERNEL(RoiAlign, CPU, RoiAlignCpu);
TK_KERNEL(RoiAlignGrad, CPU, RoiAlignGradCpu);
