// Where a coordinate of the grid lies on one axis of an image, and which pixels it is made of: for the CPU and CUDA.
//
// On an axis of `size` pixels a coordinate g is the place p, counted in pixels, pixel i lying at i:
//
//   half pixels   p = ((g + 1) size - 1) / 2        -1 and 1 are the outer edges of the first and last pixel
//   corners       p = (g + 1) / 2 (size - 1)        -1 and 1 are their centres
//   pixels        p = g
//
// Padding then moves it. Border: to the nearest place inside. Reflection: mirrored at the ends of the axis, which are
// the outer edges, or with corners the centres, as often as it takes. For bicubic, padding moves the pixels instead.
//
// Any float has a defined result: NaN, and infinity under reflection, is nowhere (its weights are NaN, and no pixel has
// a share of it); what is far outside is brought to where it makes no difference before it becomes an integer.

#ifndef TFTOOLKIT_GRID_SAMPLE_PLACES_H_
#define TFTOOLKIT_GRID_SAMPLE_PLACES_H_

#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

#include "tftoolkit/float_types.h"
#include "tftoolkit/op.h"

namespace tftoolkit {
namespace grid_sample {

enum Mode : int32_t { kNearest, kBilinear, kBicubic };
enum Padding : int32_t { kZeros, kBorder, kReflection };
enum Space : int32_t { kHalfPixels, kCorners, kPixels };

// Pixels of an axis that a place is made of.
constexpr int Taps(Mode mode) { return mode == kNearest ? 1 : mode == kBilinear ? 2 : 4; }

constexpr int32_t kNowhere = -(1 << 30);
constexpr int64_t kMostPixels = 1 << 29;  // of an axis: twice that is an int32

struct Axis {
  int32_t size;
  Padding padding;
  Space space;
  // A coordinate's place is ((g + add) * factor - less) * half, which rounds as the formulas above do.
  float add, factor, less, half;
  float low, span;  // reflection mirrors at `low` and `low` + `span`
  float last;       // size - 1

  TK_INLINE float scale() const { return factor * half; }  // pixels per unit of a coordinate
};

inline Axis MakeAxis(int64_t size, int32_t padding, int32_t space) {
  const auto pixels = static_cast<float>(size);
  const bool corners = space == kCorners, in_pixels = space == kPixels;
  return {static_cast<int32_t>(size),
          static_cast<Padding>(padding),
          static_cast<Space>(space),
          in_pixels ? 0.0f : 1.0f,
          in_pixels ? 1.0f
          : corners ? pixels - 1
                    : pixels,
          in_pixels || corners ? 0.0f : 1.0f,
          in_pixels ? 1.0f : 0.5f,
          corners ? 0.0f : -0.5f,
          corners ? pixels - 1 : pixels,
          pixels - 1};
}

// A place, and by how much it moves for each pixel that the coordinate moves.
struct Place {
  float at, slope;
};

// The ends are outside: their slope is 0, as in PyTorch.
TK_INLINE Place Clipped(Place place, float last) {
  const bool before = place.at <= 0, behind = place.at >= last;
  const float at = before ? 0.0f : behind ? last : place.at;
  return {at, before || behind ? 0.0f : place.slope};
}

// Into one period of what reflection makes of the axis, [0, 2 span], counted from low. Infinity becomes NaN.
TK_INLINE float InPeriod(const Axis& axis, float at) {
  const float period = 2 * axis.span, from_low = at - axis.low;
  const float rest = from_low - period * std::floor(from_low / period);
  return rest < 0 ? 0.0f : rest > period ? period : rest;  // of what is very large, nothing is left but rounding
}

template <Mode kMode, Padding kPadding>
TK_INLINE Place PlaceOf(const Axis& axis, float g) {
  const float at = ((g + axis.add) * axis.factor - axis.less) * axis.half;
  if constexpr (kPadding == kReflection) {
    const float from_low = InPeriod(axis, at);
    const bool single = axis.span <= 0;  // one place only; NaN stays NaN
    if constexpr (kMode == kBicubic) {
      return {single ? at - at : from_low + axis.low, single ? 0.0f : 1.0f};
    } else {
      const bool back = from_low >= axis.span;
      const float mirrored = back ? 2 * axis.span - from_low : from_low;
      const Place inside = Clipped({mirrored + axis.low, back ? -1.0f : 1.0f}, axis.last);
      return {single ? at - at : inside.at, single ? 0.0f : inside.slope};
    }
  } else if constexpr (kPadding == kBorder && kMode != kBicubic) {
    return Clipped({at, 1.0f}, axis.last);
  } else {
    // From here on outwards all pixels of a place are outside.
    const float most = axis.last + 5;
    return {at < -5 ? -5.0f : at > most ? most : at, 1.0f};
  }
}

// The first pixel of a place, and how far behind it (bicubic: behind the second) the place lies. Of the nearest pixel,
// a weight of 1 instead.
struct Start {
  int32_t first;
  float fraction;
};

template <Mode kMode>
TK_INLINE Start StartOf(float at) {
  const bool nowhere = at != at;
  const float whole = nowhere ? 0.0f : kMode == kNearest ? std::nearbyint(at) : std::floor(at);
  const int32_t first = static_cast<int32_t>(whole) - (kMode == kBicubic);
  const float fraction = kMode == kNearest ? 1.0f : at - whole;
  return {nowhere ? kNowhere : first, nowhere ? at : fraction};
}

// The pixel that stands for pixel i of the padded axis; -1 for none, where it is 0.
template <Mode kMode, Padding kPadding>
TK_INLINE int32_t PixelOf(const Axis& axis, int32_t i) {
  const int32_t size = axis.size;
  int32_t found = i;
  if constexpr (kMode == kBicubic && kPadding == kBorder) {
    found = i < 0 ? 0 : i < size ? i : size - 1;
  } else if constexpr (kMode == kBicubic && kPadding == kReflection) {
    const int32_t corners = axis.space == kCorners, period = 2 * size - 2 * corners;
    const int32_t inside = i < 0 ? i + period : i >= period ? i - period : i;  // places lie in a period, or end it
    found = size == 1 ? 0 : inside < size ? inside : period - 1 + corners - inside;
  }
  return i >= kNowhere / 2 && found >= 0 && found < size ? found : -1;
}

// run(padding) with the padding as a constant.
template <typename Run>
TK_INLINE void WithPadding(Padding padding, const Run& run) {
  if (padding == kZeros) return run(std::integral_constant<Padding, kZeros>());
  if (padding == kBorder) return run(std::integral_constant<Padding, kBorder>());
  run(std::integral_constant<Padding, kReflection>());
}

// What the k-th pixel contributes. Of two: 1 - t and t. Of four: the cubic convolution of Keys (1981) with a = -0.75,
// one polynomial within a distance of 1 and another up to 2.
constexpr float kCubic = -0.75f;

template <Mode kMode>
TK_INLINE float WeightOf(int k, float t) {
  if constexpr (kMode == kNearest) {
    return t;
  } else if constexpr (kMode == kBilinear) {
    return k == 0 ? 1 - t : t;
  } else {
    const float x = k == 0 ? t + 1 : k == 1 ? t : k == 2 ? 1 - t : 2 - t;
    return k == 1 || k == 2 ? ((kCubic + 2) * x - (kCubic + 3)) * x * x + 1
                            : ((kCubic * x - 5 * kCubic) * x + 8 * kCubic) * x - 4 * kCubic;
  }
}

// Its derivative by the place.
template <Mode kMode>
TK_INLINE float WeightSlopeOf(int k, float t) {
  if constexpr (kMode == kNearest) {
    return 0;
  } else if constexpr (kMode == kBilinear) {
    return k == 0 ? -1.0f : 1.0f;
  } else {
    const float x = k == 0 ? t + 1 : k == 1 ? t : k == 2 ? 1 - t : 2 - t;
    const float slope = k == 1 || k == 2 ? (3 * (kCubic + 2) * x - 2 * (kCubic + 3)) * x
                                         : (3 * kCubic * x - 10 * kCubic) * x + 8 * kCubic;
    return k < 2 ? slope : -slope;
  }
}

// What an op is to do. Points: those of each image.
template <int kDims>
struct Problem {
  Axis axes[kDims];  // of the images: depth (in 3-D), height, width
  int64_t batch, points, channels;

  TK_INLINE int64_t pixels() const {
    int64_t product = 1;
    for (int a = 0; a < kDims; ++a) product *= axes[a].size;
    return product;
  }
};

template <int kDims>
ffi::Error Describe(const ffi::AnyBuffer& images, const ffi::AnyBuffer& grid, int32_t mode, int32_t padding,
                    int32_t space, Problem<kDims>& problem) {
  const auto outside = [](const char* name, int32_t value, int most) {
    return ffi::Error::InvalidArgument(std::string(name) + " must be 0 to " + std::to_string(most) + ", but is " +
                                       std::to_string(value));
  };
  const int modes = kDims == 2 ? kBicubic : kBilinear;
  if (mode < 0 || mode > modes) return outside("mode", mode, modes);
  if (padding < 0 || padding > kReflection) return outside("padding", padding, kReflection);
  if (space < 0 || space > kPixels) return outside("space", space, kPixels);
  const auto sizes = images.dimensions(), places = grid.dimensions();
  problem.batch = sizes[0];
  problem.channels = sizes[kDims + 1];
  problem.points = 1;
  for (int a = 0; a < kDims; ++a) {
    const int64_t size = sizes[a + 1];
    if (size > kMostPixels) {
      return ffi::Error::InvalidArgument("images has " + std::to_string(size) + " pixels along axis " +
                                         std::to_string(a + 1) + ", but may have at most " +
                                         std::to_string(kMostPixels));
    }
    problem.axes[a] = MakeAxis(size, padding, space);
    problem.points *= places[a + 1];
  }
  return ffi::Error::Success();
}

}  // namespace grid_sample
}  // namespace tftoolkit

#endif  // TFTOOLKIT_GRID_SAMPLE_PLACES_H_
