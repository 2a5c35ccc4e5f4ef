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

  // Pixels per unit of a coordinate.
  TK_INLINE float scale() const {
    const auto pixels = static_cast<float>(size);
    return space == kPixels ? 1.0f : (space == kCorners ? pixels - 1 : pixels) * 0.5f;
  }
  // Where reflection mirrors: at `low` and `low` + `span`.
  TK_INLINE float low() const { return space == kCorners ? 0.0f : -0.5f; }
  TK_INLINE float span() const { return static_cast<float>(space == kCorners ? size - 1 : size); }
};

// A place, and by how much it moves for each pixel that the coordinate moves.
struct Place {
  float at, slope;
};

TK_INLINE float Unpadded(const Axis& axis, float g) {
  const auto pixels = static_cast<float>(axis.size);
  if (axis.space == kPixels) return g;
  return axis.space == kCorners ? (g + 1) * 0.5f * (pixels - 1) : ((g + 1) * pixels - 1) * 0.5f;
}

// The ends are outside: their slope is 0, as in PyTorch.
TK_INLINE Place Clipped(Place place, float last) {
  const bool before = place.at <= 0, behind = place.at >= last;
  const float at = before ? 0.0f : behind ? last : place.at;
  return {at, before || behind ? 0.0f : place.slope};
}

// Into one period of what reflection makes of the axis, [0, 2 span], counted from low. Infinity becomes NaN.
TK_INLINE float InPeriod(const Axis& axis, float at) {
  const float period = 2 * axis.span(), from_low = at - axis.low();
  const float rest = from_low - period * std::floor(from_low / period);
  return rest < 0 ? 0.0f : rest > period ? period : rest;  // of what is very large, nothing is left but rounding
}

template <Mode kMode>
TK_INLINE Place PlaceOf(const Axis& axis, float g) {
  const Place place = {Unpadded(axis, g), 1.0f};
  const float last = static_cast<float>(axis.size) - 1;
  if (axis.padding == kReflection) {
    if (axis.span() <= 0) return {place.at - place.at, 0.0f};  // one place only; NaN stays NaN
    const float from_low = InPeriod(axis, place.at);
    if (kMode == kBicubic) return {from_low + axis.low(), 1.0f};
    const bool back = from_low >= axis.span();
    const float mirrored = back ? 2 * axis.span() - from_low : from_low;
    return Clipped({mirrored + axis.low(), back ? -1.0f : 1.0f}, last);
  }
  if (axis.padding == kBorder && kMode != kBicubic) return Clipped(place, last);
  // From here on outwards all pixels of a place are outside.
  const float most = last + 5;
  return {place.at < -5 ? -5.0f : place.at > most ? most : place.at, 1.0f};
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
template <Mode kMode>
TK_INLINE int32_t PixelOf(const Axis& axis, int32_t i) {
  const int32_t size = axis.size;
  if (kMode != kBicubic || axis.padding == kZeros || i < kNowhere / 2 || size == 0) return i >= 0 && i < size ? i : -1;
  if (axis.padding == kBorder) return i < 0 ? 0 : i < size ? i : size - 1;
  if (size == 1) return 0;
  const int32_t period = axis.space == kCorners ? 2 * size - 2 : 2 * size;
  const int32_t inside = i < 0 ? i + period : i >= period ? i - period : i;  // places lie in one period, or end it
  return inside < size ? inside : (axis.space == kCorners ? period : period - 1) - inside;
}

// What each pixel of an axis contributes, and the derivative of that by the place.
template <int kTaps>
struct Weights {
  float value[kTaps], slope[kTaps];
};

// Of two: 1 - t and t. Of four: the cubic convolution of Keys (1981) with a = -0.75.
template <Mode kMode>
TK_INLINE Weights<Taps(kMode)> WeightsOf(float t) {
  Weights<Taps(kMode)> found;
  if constexpr (kMode == kNearest) {
    found.value[0] = t;
    found.slope[0] = 0;
  } else if constexpr (kMode == kBilinear) {
    found.value[0] = 1 - t;
    found.value[1] = t;
    found.slope[0] = -1;
    found.slope[1] = 1;
  } else {
    constexpr float kA = -0.75f;
    for (int i = 0; i < 4; ++i) {
      // x: the pixel's distance; within 1 one polynomial, from 1 to 2 the other.
      const bool inner = i == 1 || i == 2;
      const float x = i == 0 ? t + 1 : i == 1 ? t : i == 2 ? 1 - t : 2 - t;
      const float sign = i < 2 ? 1.0f : -1.0f;  // of x's derivative by t
      found.value[i] = inner ? ((kA + 2) * x - (kA + 3)) * x * x + 1 : ((kA * x - 5 * kA) * x + 8 * kA) * x - 4 * kA;
      found.slope[i] = sign * (inner ? (3 * (kA + 2) * x - 2 * (kA + 3)) * x : (3 * kA * x - 10 * kA) * x + 8 * kA);
    }
  }
  return found;
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
    problem.axes[a] = {static_cast<int32_t>(size), static_cast<Padding>(padding), static_cast<Space>(space)};
    problem.points *= places[a + 1];
  }
  return ffi::Error::Success();
}

}  // namespace grid_sample
}  // namespace tftoolkit

#endif  // TFTOOLKIT_GRID_SAMPLE_PLACES_H_
