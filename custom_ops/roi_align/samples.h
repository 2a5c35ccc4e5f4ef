// Where RoIAlign takes its samples, for CPU and GPU alike.

#ifndef TFTOOLKIT_ROI_ALIGN_SAMPLES_H_
#define TFTOOLKIT_ROI_ALIGN_SAMPLES_H_

#include <cmath>
#include <cstdint>
#include <string>

#include "tftoolkit/float_types.h"
#include "tftoolkit/op.h"

namespace tftoolkit {
namespace roi_align {

constexpr int64_t kMostSamples = 1024;        // sampling_ratio
constexpr float kMostAdaptive = 16777216.0f;  // in a bin this large floats are too coarse for its samples anyway

struct Options {
  float spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

TK_INLINE int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TK_INLINE int64_t Larger(int64_t a, int64_t b) { return a < b ? b : a; }

// A number that may be beyond all bounds, as a whole one from `low` to `high`.
TK_INLINE int64_t Whole(float x, int64_t low, int64_t high) {
  return x > static_cast<float>(low) ? (x < static_cast<float>(high) ? static_cast<int64_t>(x) : high) : low;
}

struct Range {
  int64_t begin, end;
};

// What a sample reads of its axis: two neighbours, or one twice at the border.
struct Sample {
  int64_t low, high;
  float low_weight, high_weight;
};

// One axis of a box: `bins` bins of `grid` samples each over `length` pixels.
struct Axis {
  float start, bin, step;  // of the first bin, from bin to bin, from sample to sample
  int64_t grid, bins, length;
  bool adaptive;

  TK_INLINE Axis(float from, float to, int64_t bins, int64_t length, const Options& options)
      : bins(bins), length(length), adaptive(options.sampling_ratio <= 0) {
    const float offset = options.aligned ? 0.5f : 0.0f;
    start = from * options.spatial_scale - offset;
    float size = to * options.spatial_scale - offset - start;
    if (!options.aligned && size < 1.0f) size = 1.0f;
    bin = size / static_cast<float>(bins);
    grid = adaptive ? Whole(std::ceil(bin), 0, static_cast<int64_t>(kMostAdaptive)) : options.sampling_ratio;
    step = bin / static_cast<float>(Larger(grid, 1));
  }

  TK_INLINE bool finite() const { return start - start == 0.0f && bin - bin == 0.0f; }

  TK_INLINE float Position(int64_t b, int64_t i) const {
    return start + static_cast<float>(b) * bin + (static_cast<float>(i) + 0.5f) * step;
  }

  // False for a sample outside of the picture.
  TK_INLINE bool Read(int64_t b, int64_t i, Sample& sample) const {
    float p = Position(b, i);
    if (!(p >= -1.0f && p <= static_cast<float>(length)) || length == 0) return false;
    if (p < 0.0f) p = 0.0f;
    sample.low = static_cast<int64_t>(p);
    if (sample.low >= length - 1) {
      sample = {length - 1, length - 1, 1.0f, 0.0f};
    } else {
      sample.high = sample.low + 1;
      sample.high_weight = p - static_cast<float>(sample.low);
      sample.low_weight = 1.0f - sample.high_weight;
    }
    return true;
  }

  // Those samples of a bin that may lie between two positions, and few others. A box may be far larger than the
  // picture.
  TK_INLINE Range Between(int64_t b, float low, float high) const {
    if (!adaptive) return {0, grid};
    const float first = start + static_cast<float>(b) * bin;
    return {Whole((low - first) / step - 2.0f, 0, grid), Whole((high - first) / step + 2.0f, 0, grid)};
  }

  TK_INLINE Range Inside(int64_t b) const { return Between(b, -1.0f, static_cast<float>(length)); }

  // Pixels that the box may read, and few others.
  TK_INLINE Range Pixels() const {
    const float end = start + static_cast<float>(bins) * bin;
    const float low = start < end ? start : end, high = start < end ? end : start;
    return {Whole(low - 2.0f, 0, length), Whole(high + 3.0f, 0, length)};
  }
};

// What a box adds up is divided by this.
TK_INLINE float Count(const Axis& y, const Axis& x) {
  const float count = static_cast<float>(y.grid) * static_cast<float>(x.grid);
  return count > 1.0f ? count : 1.0f;
}

inline ffi::Error Check(int64_t height, int64_t width, int64_t sampling_ratio) {
  if (height < 1 || width < 1) {
    return ffi::Error::InvalidArgument("output_size must be positive, but is " + std::to_string(height) + " x " +
                                       std::to_string(width));
  }
  if (sampling_ratio > kMostSamples) {
    return ffi::Error::InvalidArgument("sampling_ratio may be " + std::to_string(kMostSamples) + ", but is " +
                                       std::to_string(sampling_ratio));
  }
  return ffi::Error::Success();
}

}  // namespace roi_align
}  // namespace tftoolkit

#endif  // TFTOOLKIT_ROI_ALIGN_SAMPLES_H_
