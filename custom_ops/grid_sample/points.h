// What is computed at the points of a grid on the CPU: first the pixels that each is made of and their weights, which
// do not depend on the dtype, and from these values and gradients, which do not depend on the number of dimensions.
//
// Points are taken in chunks. A pixel outside is one of zeros, so that it adds nothing, and takes no part of a NaN
// beside it.

#ifndef TFTOOLKIT_GRID_SAMPLE_POINTS_H_
#define TFTOOLKIT_GRID_SAMPLE_POINTS_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "places.h"
#include "tftoolkit/float_types.h"

namespace tftoolkit {
namespace grid_sample {

constexpr int64_t kChunk = 64;  // points whose pixels and weights stay in the first cache

constexpr int Power(int base, int exponent) { return exponent == 0 ? 1 : base * Power(base, exponent - 1); }

// The pixels of each point, -1 for those outside, and their weights.
template <int kPixels>
struct Shares {
  int64_t pixel[kPixels][kChunk];
  float weight[kPixels][kChunk];
};

// The weights' derivatives by x, y(, z) of the grid.
template <int kPixels, int kDims>
struct Slopes {
  float by[kDims][kPixels][kChunk];
};

// Of the points along one axis: pixels, weights and their derivatives by the coordinate.
template <int kTaps>
struct Along {
  int32_t pixel[kTaps][kChunk];
  float weight[kTaps][kChunk], slope[kTaps][kChunk];
};

// In small loops, which compilers make vectors of.
template <Mode kMode, Padding kPadding, int kTaps>
TK_INLINE void LookAlong(const Axis axis, const float* coordinates, Along<kTaps>* along) {
  const float scale = axis.scale();
  int32_t first[kChunk];
  float fraction[kChunk], slope[kChunk];
#pragma omp simd
  for (int64_t i = 0; i < kChunk; ++i) {
    const Place place = PlaceOf<kMode, kPadding>(axis, coordinates[i]);
    const Start start = StartOf<kMode>(place.at);
    first[i] = start.first;
    fraction[i] = start.fraction;
    slope[i] = place.slope * scale;
  }
  for (int k = 0; k < kTaps; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < kChunk; ++i) {
      along->pixel[k][i] = PixelOf<kMode, kPadding>(axis, first[i] + k);
      along->weight[k][i] = WeightOf<kMode>(k, fraction[i]);
      along->slope[k][i] = WeightSlopeOf<kMode>(k, fraction[i]) * slope[i];
    }
  }
}

// Of `count` points, the coordinates of the first at `grid`. The last axis goes fastest in the lists of pixels.
// `slopes` may be null.
template <Mode kMode, int kDims, int kPixels = Power(Taps(kMode), kDims)>
TK_INLINE void SharesOf(const Problem<kDims>& problem, const float* grid, int64_t count, Shares<kPixels>* shares,
                        Slopes<kPixels, kDims>* slopes) {
  constexpr int kTaps = Taps(kMode);
  Along<kTaps> axes[kDims];
  for (int a = 0; a < kDims; ++a) {
    float coordinates[kChunk] = {};  // behind the last point, any
    for (int64_t i = 0; i < count; ++i) coordinates[i] = grid[i * kDims + kDims - 1 - a];
    WithPadding(problem.axes[a].padding, [&](auto padding) TK_INLINE_LAMBDA {
      LookAlong<kMode, decltype(padding)::value>(problem.axes[a], coordinates, &axes[a]);
    });
  }
  for (int t = 0; t < kPixels; ++t) {
    int64_t* pixel = shares->pixel[t];
    float* weight = shares->weight[t];
    for (int a = 0, rest = kPixels; a < kDims; ++a) {
      rest /= kTaps;
      const int k = t / rest % kTaps;
      const int32_t* here = axes[a].pixel[k];
      const float* factor = axes[a].weight[k];
      const int64_t size = problem.axes[a].size;
      if (a == 0) {
#pragma omp simd
        for (int64_t i = 0; i < kChunk; ++i) pixel[i] = here[i], weight[i] = factor[i];
      } else {
#pragma omp simd
        for (int64_t i = 0; i < kChunk; ++i) {
          const int64_t inside = pixel[i] * size + here[i];
          pixel[i] = pixel[i] < 0 || here[i] < 0 ? -1 : inside;
          weight[i] *= factor[i];
        }
      }
    }
    for (int b = 0; slopes && b < kDims; ++b) {
      float* by = slopes->by[kDims - 1 - b][t];
#pragma omp simd
      for (int64_t i = 0; i < kChunk; ++i) {
        float product = 1;
        for (int a = 0, rest = kPixels; a < kDims; ++a) {
          rest /= kTaps;
          const int k = t / rest % kTaps;
          product *= a == b ? axes[a].slope[k][i] : axes[a].weight[k][i];
        }
        by[i] = weight[i] == weight[i] ? product : weight[i];  // all NaN where the point is nowhere
      }
    }
  }
}

// Calls run(n) with n known to the compiler where it is that of a color, and few pixels of floats are read: loops over
// it are unrolled. All others are loops: code for each number of channels takes its time to compile.
template <typename T, int kPixels, typename Run>
TK_INLINE void WithChannels(int64_t channels, const Run& run) {
  if constexpr (std::is_same_v<T, float> && kPixels <= 4) {
    if (channels == 3) return run(std::integral_constant<int64_t, 3>());
    if (channels == 1) return run(std::integral_constant<int64_t, 1>());
  }
  run(channels);
}

// y of the points. `zeros`: a pixel of them.
template <int kPixels, typename T>
TK_INLINE void Blend(const Shares<kPixels>& shares, const T* image, const T* zeros, int64_t count, int64_t size, T* y) {
  for (int64_t i = 0; i < count; ++i, y += size) {
    const T* pixels[kPixels];
    for (int t = 0; t < kPixels; ++t) {
      const int64_t pixel = shares.pixel[t][i];
      pixels[t] = pixel < 0 ? zeros : image + pixel * size;
    }
    float weights[kPixels];
    for (int t = 0; t < kPixels; ++t) weights[t] = shares.weight[t][i];
    WithChannels<T, kPixels>(size, [&](auto channels) TK_INLINE_LAMBDA {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        float sum = Load(pixels[0][c]) * weights[0];
        for (int t = 1; t < kPixels; ++t) sum += Load(pixels[t][c]) * weights[t];
        y[c] = Store<T>(sum);
      }
    });
  }
}

// The products of a point's pixels with dy, summed over the channels. Outside they are 0.
template <int kPixels, typename T>
TK_INLINE void Products(const Shares<kPixels>& shares, const T* image, const T* dy, int64_t count, int64_t size,
                        float (*products)[kChunk]) {
  for (int64_t i = 0; i < count; ++i, dy += size) {
    for (int t = 0; t < kPixels; ++t) {
      const int64_t pixel = shares.pixel[t][i];
      const T* values = image + std::max<int64_t>(0, pixel) * size;
      float sum = 0;
      if (pixel >= 0) {
        WithChannels<T, kPixels>(size, [&](auto channels) TK_INLINE_LAMBDA {
#pragma omp simd reduction(+ : sum)
          for (int64_t c = 0; c < channels; ++c) sum += Load(dy[c]) * Load(values[c]);
        });
      }
      products[t][i] = sum;
    }
  }
}

// Whether any pixel of the points lies from `begin` to `end`.
template <int kPixels>
TK_INLINE bool Reach(const Shares<kPixels>& shares, int64_t count, int64_t begin, int64_t end) {
  int64_t within = 0;
  for (int t = 0; t < kPixels; ++t) {
    const int64_t* pixel = shares.pixel[t];
#pragma omp simd reduction(+ : within)
    for (int64_t i = 0; i < count; ++i) within += pixel[i] >= begin && pixel[i] < end;
  }
  return within > 0;
}

// Adds the points' shares of dy to the gradients of their pixels, from `begin` to `end`; `sums` is at `begin`.
template <int kPixels, typename T>
TK_INLINE void Spread(const Shares<kPixels>& shares, const T* dy, int64_t count, int64_t size, int64_t begin,
                      int64_t end, float* sums) {
  if (!Reach(shares, count, begin, end)) return;
  for (int64_t i = 0; i < count; ++i, dy += size) {
    for (int t = 0; t < kPixels; ++t) {
      const int64_t pixel = shares.pixel[t][i];
      if (pixel < begin || pixel >= end) continue;
      const float weight = shares.weight[t][i];
      float* to = sums + (pixel - begin) * size;
      WithChannels<T, kPixels>(size, [=](auto channels) TK_INLINE_LAMBDA {
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) to[c] += Load(dy[c]) * weight;
      });
    }
  }
}

}  // namespace grid_sample
}  // namespace tftoolkit

#endif  // TFTOOLKIT_GRID_SAMPLE_POINTS_H_
