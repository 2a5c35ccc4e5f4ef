// The pixels that the points of a grid are made of, and their weights, on the CPU; points are taken in chunks.

#ifndef TFTOOLKIT_GRID_SAMPLE_SHARES_H_
#define TFTOOLKIT_GRID_SAMPLE_SHARES_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "places.h"
#include "tftoolkit/float_types.h"

namespace tftoolkit {
namespace grid_sample {

constexpr int64_t kChunk = 64;  // points whose pixels and weights stay in the first cache

constexpr int Power(int base, int exponent) { return exponent == 0 ? 1 : base * Power(base, exponent - 1); }

constexpr int64_t kOutside = -(int64_t{1} << 61);  // sums of it and of offsets are negative

// Where the pixels of each point begin in the image, counted in values, negative for those outside; and their weights.
template <int kPixels>
struct Shares {
  int64_t offset[kPixels][kChunk];
  float weight[kPixels][kChunk];
};

// The weights' derivatives by x, y(, z) of the grid.
template <int kPixels, int kDims>
struct Slopes {
  float by[kDims][kPixels][kChunk];
};

// Of the points along one axis: where pixels lie, weights and their derivatives by the coordinate.
template <int kTaps>
struct Along {
  int64_t offset[kTaps][kChunk];
  float weight[kTaps][kChunk], slope[kTaps][kChunk];
};

// Calls run(k) for k from 0 to below kCount, a constant each time: else compilers make no vectors of loops within.
template <int kCount, int kFirst = 0, typename Run>
TK_INLINE void ForEach(const Run& run) {
  if constexpr (kFirst < kCount) {
    run(std::integral_constant<int, kFirst>());
    ForEach<kCount, kFirst + 1>(run);
  }
}

// In small loops, which compilers make vectors of. `stride`: from a pixel to the next one.
template <Mode kMode, Padding kPadding, int kTaps>
TK_INLINE void LookAlong(const Axis axis, int64_t stride, const float* coordinates, Along<kTaps>* along) {
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
  ForEach<kTaps>([&](auto tap) TK_INLINE_LAMBDA {
    constexpr int k = decltype(tap)::value;
    int32_t pixel[kChunk];
#pragma omp simd
    for (int64_t i = 0; i < kChunk; ++i) {
      pixel[i] = PixelOf<kMode, kPadding>(axis, first[i] + k);
      along->weight[k][i] = WeightOf<kMode>(k, fraction[i]);
      along->slope[k][i] = WeightSlopeOf<kMode>(k, fraction[i]) * slope[i];
    }
#pragma omp simd
    for (int64_t i = 0; i < kChunk; ++i) along->offset[k][i] = pixel[i] < 0 ? kOutside : pixel[i] * stride;
  });
}

// Of `count` points, the coordinates of the first at `grid`. The last axis goes fastest in the lists of pixels.
// `slopes` may be null.
template <Mode kMode, int kDims, int kPixels = Power(Taps(kMode), kDims)>
TK_INLINE void SharesOf(const Problem<kDims>& problem, const float* grid, int64_t count, Shares<kPixels>* shares,
                        Slopes<kPixels, kDims>* slopes) {
  constexpr int kTaps = Taps(kMode);
  Along<kTaps> axes[kDims];
  int64_t stride = problem.channels;
  for (int a = kDims - 1; a >= 0; stride *= problem.axes[a--].size) {
    float coordinates[kChunk] = {};  // behind the last point, any
    for (int64_t i = 0; i < count; ++i) coordinates[i] = grid[i * kDims + kDims - 1 - a];
    WithPadding(problem.axes[a].padding, [&](auto padding) TK_INLINE_LAMBDA {
      LookAlong<kMode, decltype(padding)::value>(problem.axes[a], stride, coordinates, &axes[a]);
    });
  }
  for (int t = 0; t < kPixels; ++t) {
    const int64_t* offset[kDims];
    const float* weight[kDims];
    for (int a = 0, rest = kPixels; a < kDims; ++a) {
      rest /= kTaps;
      offset[a] = axes[a].offset[t / rest % kTaps];
      weight[a] = axes[a].weight[t / rest % kTaps];
    }
#pragma omp simd
    for (int64_t i = 0; i < kChunk; ++i) {
      int64_t sum = offset[0][i];
      float product = weight[0][i];
      for (int a = 1; a < kDims; ++a) sum += offset[a][i], product *= weight[a][i];
      shares->offset[t][i] = sum;
      shares->weight[t][i] = product;
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
        by[i] = shares->weight[t][i] == shares->weight[t][i]
                    ? product
                    : shares->weight[t][i];  // all NaN where the point is nowhere
      }
    }
  }
}

// Asks for the pixels of the points before they are used. Where the grid is turned against the image, a new line of the
// cache comes every few points, from rows that the processor cannot guess.
template <int kPixels, typename T>
TK_INLINE void Prefetch(const Shares<kPixels>& shares, const T* image, int64_t count) {
  constexpr int kBeside = kPixels == 16 ? 4 : kPixels > 1 ? 2 : 1;  // lie side by side
  for (int t = 0; t < kPixels; t += kBeside) {
    for (int64_t i = 0; i < count; ++i) __builtin_prefetch(image + std::max<int64_t>(0, shares.offset[t][i]));
  }
}

// Whether any pixel of the points begins at a value from `begin` to `end`.
template <int kPixels>
TK_INLINE bool Reach(const Shares<kPixels>& shares, int64_t count, int64_t begin, int64_t end) {
  int64_t within = 0;
  for (int t = 0; t < kPixels; ++t) {
    const int64_t* offset = shares.offset[t];
#pragma omp simd reduction(+ : within)
    for (int64_t i = 0; i < count; ++i) within += offset[i] >= begin && offset[i] < end;
  }
  return within > 0;
}

}  // namespace grid_sample
}  // namespace tftoolkit

#endif  // TFTOOLKIT_GRID_SAMPLE_SHARES_H_
