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
  int64_t pixel[kChunk][kPixels];
  float weight[kChunk][kPixels];
};

// The weights' derivatives by x, y(, z) of the grid.
template <int kPixels, int kDims>
struct Slopes {
  float by[kDims][kChunk][kPixels];
};

// Of `count` points, the coordinates of the first at `grid`. The last axis goes fastest in the lists of pixels.
// `slopes` may be null.
template <Mode kMode, int kDims, int kPixels = Power(Taps(kMode), kDims)>
TK_INLINE void SharesOf(const Problem<kDims>& problem, const float* grid, int64_t count, Shares<kPixels>* shares,
                        Slopes<kPixels, kDims>* slopes) {
  constexpr int kTaps = Taps(kMode);
  float fraction[kDims][kChunk], slope[kDims][kChunk];
  int32_t first[kDims][kChunk];
  for (int a = 0; a < kDims; ++a) {
    const Axis axis = problem.axes[a];
    const float scale = axis.scale();
    const float* coordinates = grid + kDims - 1 - a;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const Place place = PlaceOf<kMode>(axis, coordinates[i * kDims]);
      const Start start = StartOf<kMode>(place.at);
      first[a][i] = start.first;
      fraction[a][i] = start.fraction;
      slope[a][i] = place.slope * scale;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    Weights<kTaps> weights[kDims];
    int64_t pixels[kDims][kTaps];
    for (int a = 0; a < kDims; ++a) {
      weights[a] = WeightsOf<kMode>(fraction[a][i]);
      for (int k = 0; k < kTaps; ++k) pixels[a][k] = PixelOf<kMode>(problem.axes[a], first[a][i] + k);
    }
    for (int t = 0; t < kPixels; ++t) {
      int64_t pixel = 0;
      float weight = 1, by[kDims];
      bool outside = false;
      for (int a = 0, rest = kPixels; a < kDims; ++a) {
        rest /= kTaps;
        const int k = t / rest % kTaps;
        outside |= pixels[a][k] < 0;
        pixel = pixel * problem.axes[a].size + pixels[a][k];
        for (int b = 0; b < a; ++b) by[b] *= weights[a].value[k];
        by[a] = weight * weights[a].slope[k] * slope[a][i];
        weight *= weights[a].value[k];
      }
      shares->pixel[i][t] = outside ? -1 : pixel;
      shares->weight[i][t] = weight;
      for (int a = 0; slopes && a < kDims; ++a) {
        slopes->by[kDims - 1 - a][i][t] = weight == weight ? by[a] : weight;  // all NaN where the point is nowhere
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
      const int64_t pixel = shares.pixel[i][t];
      pixels[t] = pixel < 0 ? zeros : image + pixel * size;
    }
    const float* weights = shares.weight[i];
    WithChannels<T, kPixels>(size, [=](auto channels) TK_INLINE_LAMBDA {
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
                        float (*products)[kPixels]) {
  for (int64_t i = 0; i < count; ++i, dy += size) {
    for (int t = 0; t < kPixels; ++t) {
      const int64_t pixel = shares.pixel[i][t];
      const T* values = image + std::max<int64_t>(0, pixel) * size;
      float sum = 0;
      if (pixel >= 0) {
        WithChannels<T, kPixels>(size, [&](auto channels) TK_INLINE_LAMBDA {
#pragma omp simd reduction(+ : sum)
          for (int64_t c = 0; c < channels; ++c) sum += Load(dy[c]) * Load(values[c]);
        });
      }
      products[i][t] = sum;
    }
  }
}

// Adds the points' shares of dy to the gradients of their pixels, from `begin` to `end`; `sums` is at `begin`.
template <int kPixels, typename T>
TK_INLINE void Spread(const Shares<kPixels>& shares, const T* dy, int64_t count, int64_t size, int64_t begin,
                      int64_t end, float* sums) {
  for (int64_t i = 0; i < count; ++i, dy += size) {
    for (int t = 0; t < kPixels; ++t) {
      const int64_t pixel = shares.pixel[i][t];
      if (pixel < begin || pixel >= end) continue;
      const float weight = shares.weight[i][t];
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
