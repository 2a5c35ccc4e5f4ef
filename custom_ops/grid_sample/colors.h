// Points of float images of three or four channels, which fill one vector register: each pixel is one load, where a
// loop over so few channels would be all overhead. Of three channels a load takes one value more than the pixel has,
// and what is written takes one more than the point: the next one's, which is written after it.
//
// Sums are in the order of the loops of points.h, and so to the bit the same.

#ifndef TFTOOLKIT_GRID_SAMPLE_COLORS_H_
#define TFTOOLKIT_GRID_SAMPLE_COLORS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "shares.h"
#include "tftoolkit/float_types.h"

namespace tftoolkit {
namespace grid_sample {

using Four = float __attribute__((vector_size(16)));
#ifdef __clang__
#define TK_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
using FourPlaces = int32_t __attribute__((vector_size(16)));
#define TK_PICK(a, b, ...) __builtin_shuffle(a, b, FourPlaces{__VA_ARGS__})
#endif

inline constexpr float kNoColor[4] = {};

TK_INLINE Four LoadFour(const float* from) {
  Four values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

TK_INLINE void StoreFour(Four values, float* to) { std::memcpy(to, &values, sizeof values); }

TK_INLINE Four Color(const float* image, int64_t offset) { return LoadFour(offset < 0 ? kNoColor : image + offset); }

// Four colors as a register for each channel. Of three channels the last one holds what is behind the pixels.
struct Channels {
  Four of[4];

  TK_INLINE Channels(Four a, Four b, Four c, Four d) {
    const Four ab = TK_PICK(a, b, 0, 4, 1, 5), cd = TK_PICK(c, d, 0, 4, 1, 5);
    const Four ab_behind = TK_PICK(a, b, 2, 6, 3, 7), cd_behind = TK_PICK(c, d, 2, 6, 3, 7);
    of[0] = TK_PICK(ab, cd, 0, 1, 4, 5);
    of[1] = TK_PICK(ab, cd, 2, 3, 6, 7);
    of[2] = TK_PICK(ab_behind, cd_behind, 0, 1, 4, 5);
    of[3] = TK_PICK(ab_behind, cd_behind, 2, 3, 6, 7);
  }
};

// Whether all pixels can be loaded as four values: not the last one of three channels, behind which the image may end.
template <int kPixels>
TK_INLINE bool AreColors(const Shares<kPixels>& shares, int64_t count, int64_t channels, int64_t values) {
  return channels == 4 || (channels == 3 && !Reach(shares, count, values - 3, values));
}

template <int kChannels, int kPixels>
TK_INLINE void BlendColors(const Shares<kPixels>& shares, const float* image, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i, y += kChannels) {
    Four sum = Color(image, shares.offset[0][i]) * shares.weight[0][i];
    for (int t = 1; t < kPixels; ++t) sum += Color(image, shares.offset[t][i]) * shares.weight[t][i];
    if (kChannels == 4 || i + 1 < count) {
      StoreFour(sum, y);
    } else {
      std::memcpy(y, &sum, kChannels * sizeof(float));
    }
  }
}

// Products (points.h) of four points at a time. Returns for how many points.
template <int kChannels, int kPixels>
TK_INLINE int64_t ColorProducts(const Shares<kPixels>& shares, const float* image, const float* dy, int64_t count,
                                float (*products)[kChunk]) {
  int64_t i = 0;
  for (; i + 4 < count; i += 4, dy += 4 * kChannels) {  // behind the fourth point there is another
    const Channels above(LoadFour(dy), LoadFour(dy + kChannels), LoadFour(dy + 2 * kChannels),
                         LoadFour(dy + 3 * kChannels));
    for (int t = 0; t < kPixels; ++t) {
      const int64_t* at = &shares.offset[t][i];
      const Channels here(Color(image, at[0]), Color(image, at[1]), Color(image, at[2]), Color(image, at[3]));
      Four sum = above.of[0] * here.of[0];
      for (int c = 1; c < kChannels; ++c) sum += above.of[c] * here.of[c];
      StoreFour(sum, &products[t][i]);
    }
  }
  for (int t = 0; t < kPixels; ++t) {
    const int64_t* offset = shares.offset[t];
#pragma omp simd
    for (int64_t j = 0; j < i; ++j) products[t][j] = offset[j] < 0 ? 0.0f : products[t][j];  // not 0 times a NaN
  }
  return i;
}

}  // namespace grid_sample
}  // namespace tftoolkit

#endif  // TFTOOLKIT_GRID_SAMPLE_COLORS_H_
