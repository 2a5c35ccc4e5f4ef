// What is computed at the points of a grid on the CPU from pixels and weights (shares.h): values and gradients, for any
// number of dimensions.
//
// A pixel outside is one of zeros, so that it adds nothing, and takes no part of a NaN beside it.

#ifndef TFTOOLKIT_GRID_SAMPLE_POINTS_H_
#define TFTOOLKIT_GRID_SAMPLE_POINTS_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "colors.h"
#include "shares.h"
#include "tftoolkit/float_types.h"

namespace tftoolkit {
namespace grid_sample {

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

// y of the points. `zeros`: a pixel of them; `values`: those of the image.
template <int kPixels, typename T>
TK_INLINE void Blend(const Shares<kPixels>& shares, const T* image, int64_t values, const T* zeros, int64_t count,
                     int64_t size, T* y) {
  Prefetch(shares, image, count);
  if constexpr (std::is_same_v<T, float>) {
    if (AreColors(shares, count, size, values)) {
      return size == 3 ? BlendColors<3>(shares, image, count, y) : BlendColors<4>(shares, image, count, y);
    }
  }
  for (int64_t i = 0; i < count; ++i, y += size) {
    const T* pixels[kPixels];
    for (int t = 0; t < kPixels; ++t) {
      const int64_t offset = shares.offset[t][i];
      pixels[t] = offset < 0 ? zeros : image + offset;
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
TK_INLINE void Products(const Shares<kPixels>& shares, const T* image, int64_t values, const T* dy, int64_t count,
                        int64_t size, float (*products)[kChunk]) {
  Prefetch(shares, image, count);
  int64_t i = 0;
  if constexpr (std::is_same_v<T, float>) {
    if (AreColors(shares, count, size, values)) {
      i = size == 3 ? ColorProducts<3>(shares, image, dy, count, products)
                    : ColorProducts<4>(shares, image, dy, count, products);
    }
  }
  for (dy += i * size; i < count; ++i, dy += size) {
    for (int t = 0; t < kPixels; ++t) {
      const int64_t offset = shares.offset[t][i];
      const T* pixel = image + std::max<int64_t>(0, offset);
      float sum = 0;
      if (offset >= 0) {
        WithChannels<T, kPixels>(size, [&](auto channels) TK_INLINE_LAMBDA {
#pragma omp simd reduction(+ : sum)
          for (int64_t c = 0; c < channels; ++c) sum += Load(dy[c]) * Load(pixel[c]);
        });
      }
      products[t][i] = sum;
    }
  }
}

// Adds the points' shares of dy to the gradients of their pixels, which begin at values from `begin` to `end`; `sums`
// is at `begin`.
template <int kPixels, typename T>
TK_INLINE void Spread(const Shares<kPixels>& shares, const T* dy, int64_t count, int64_t size, int64_t begin,
                      int64_t end, float* sums) {
  if (!Reach(shares, count, begin, end)) return;
  for (int64_t i = 0; i < count; ++i, dy += size) {
    for (int t = 0; t < kPixels; ++t) {
      const int64_t offset = shares.offset[t][i];
      if (offset < begin || offset >= end) continue;
      const float weight = shares.weight[t][i];
      float* to = sums + (offset - begin);
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
