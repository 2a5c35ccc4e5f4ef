// What deform_conv2d is asked to compute, and where its samples lie, for CPU and GPU alike.

#ifndef TFTOOLKIT_DEFORM_CONV2D_PROBLEM_H_
#define TFTOOLKIT_DEFORM_CONV2D_PROBLEM_H_

#include <cmath>
#include <cstdint>
#include <string>

#include "tftoolkit/float_types.h"
#include "tftoolkit/op.h"

namespace tftoolkit {
namespace deform {

// Of one direction.
struct Steps {
  int64_t stride, padding, dilation;
};

// x is [batch, height, width, channels], y [batch, out_height, out_width, out_channels], the weight [kernel_height,
// kernel_width, group_channels, out_channels].
struct Shape {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width;
  int64_t groups, offset_groups;
  Steps y, x;

  TK_INLINE int64_t points() const { return kernel_height * kernel_width; }
  TK_INLINE int64_t pixels() const { return out_height * out_width; }
  TK_INLINE int64_t group_channels() const { return channels / groups; }
  TK_INLINE int64_t group_outputs() const { return out_channels / groups; }
};

// A point of the kernel at one pixel of y: the four pixels of x around it, and where it lies between them.
struct Point {
  int64_t corners[4];  // elements from the beginning of x to the pixel's first channel; -1 outside of the picture
  float y, x;          // 0 to 1, from the upper left corner
  float mask;
  bool nan;  // it lies nowhere

  // What it has of a picture that is 0 all over.
  TK_INLINE float Outside() const { return nan ? NAN : 0.0f * mask; }

  TK_INLINE float Weight(int corner) const { return (corner / 2 ? y : 1.0f - y) * (corner % 2 ? x : 1.0f - x); }
};

// `pixel` counts the pixels of y over the whole batch. `mask` may be null.
template <typename T>
TK_INLINE Point FindPoint(const Shape& s, const T* offset, const T* mask, int64_t pixel, int64_t offset_group,
                          int64_t point) {
  const int64_t row = pixel / s.out_width % s.out_height, column = pixel % s.out_width;
  const int64_t place = (pixel * s.offset_groups + offset_group) * s.points() + point;
  const float y = static_cast<float>(row * s.y.stride - s.y.padding + point / s.kernel_width * s.y.dilation) +
                  Load(offset[2 * place]);
  const float x = static_cast<float>(column * s.x.stride - s.x.padding + point % s.kernel_width * s.x.dilation) +
                  Load(offset[2 * place + 1]);
  Point found{{-1, -1, -1, -1}, 0.0f, 0.0f, mask == nullptr ? 1.0f : Load(mask[place]), false};
  found.nan = y != y || x != x;
  const bool near = y >= -1.0f && y < static_cast<float>(s.height) && x >= -1.0f && x < static_cast<float>(s.width);
  if (!near) return found;  // also where floats are beyond all integers
  const float low_y = std::floor(y), low_x = std::floor(x);
  found.y = y - low_y;
  found.x = x - low_x;
  const int64_t top = static_cast<int64_t>(low_y), left = static_cast<int64_t>(low_x);
  const int64_t picture = pixel / s.pixels() * s.height;
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t at_y = top + corner / 2, at_x = left + corner % 2;
    if (at_y < 0 || at_y >= s.height || at_x < 0 || at_x >= s.width) continue;
    found.corners[corner] = ((picture + at_y) * s.width + at_x) * s.channels;
  }
  return found;
}

struct PointGradient {
  float y = 0, x = 0, mask = 0;

  TK_INLINE void Add(const PointGradient& other) {
    y += other.y;
    x += other.x;
    mask += other.mask;
  }
};

// From the products of the gradient by the column with the four corners.
TK_INLINE PointGradient GradientOf(const Point& point, const float (&dots)[4]) {
  if (point.nan) {
    const float nan = NAN;
    return {nan, nan, nan};
  }
  const float y = (1.0f - point.x) * (dots[2] - dots[0]) + point.x * (dots[3] - dots[1]);
  const float x = (1.0f - point.y) * (dots[1] - dots[0]) + point.y * (dots[3] - dots[2]);
  float mask = 0;
  for (int corner = 0; corner < 4; ++corner) mask += point.Weight(corner) * dots[corner];
  return {y * point.mask, x * point.mask, mask};
}

inline ffi::Error Wrong(const std::string& text) { return ffi::Error::InvalidArgument(text); }

inline ffi::Error CheckSteps(const char* name, const Steps& steps, int64_t length, int64_t kernel, int64_t out) {
  constexpr int64_t kMost = int64_t{1} << 31;
  const std::string of = std::string(" of the ") + name;
  if (steps.stride < 1 || steps.stride > kMost || steps.dilation < 1 || steps.dilation > kMost || steps.padding < 0 ||
      steps.padding > kMost) {
    return Wrong("stride and dilation" + of + " must be at least 1, padding 0, and all at most 2^31, but are " +
                 std::to_string(steps.stride) + ", " + std::to_string(steps.dilation) + " and " +
                 std::to_string(steps.padding));
  }
  const int64_t room = length + 2 * steps.padding - steps.dilation * (kernel - 1) - 1;
  const int64_t expected = room < 0 ? 0 : room / steps.stride + 1;
  if (expected == out || out == 0) return ffi::Error::Success();  // hosts take an empty y without asking a kernel
  return Wrong("offset says that y has the " + std::string(name) + " " + std::to_string(out) + ", but it has " +
               std::to_string(expected) + ", from " + std::to_string(length) + " of x, the kernel's " +
               std::to_string(kernel) + ", stride, padding and dilation");
}

// Fills `s` from the shapes of x, offset, weight and, unless null, mask; or says what does not fit.
inline ffi::Error FindShape(const ffi::AnyBuffer& x, const ffi::AnyBuffer& offset, const ffi::AnyBuffer& weight,
                            const ffi::AnyBuffer* mask, const Steps& along_y, const Steps& along_x, Shape& s) {
  const auto in = x.dimensions(), places = offset.dimensions(), kernel = weight.dimensions();
  s = {in[0], in[1], in[2], in[3], places[1], places[2], kernel[3], kernel[0], kernel[1], 1, 1, along_y, along_x};
  if (kernel[0] < 1 || kernel[1] < 1 || kernel[2] < 1) {
    return Wrong("weight must have a height, a width and channels, but is " + std::to_string(kernel[0]) + " x " +
                 std::to_string(kernel[1]) + " with " + std::to_string(kernel[2]) + " channels");
  }
  s.groups = s.channels / kernel[2];
  if (s.groups < 1 || s.channels % kernel[2] != 0 || s.out_channels % s.groups != 0) {
    return Wrong("x has " + std::to_string(s.channels) + " channels, weight takes " + std::to_string(kernel[2]) +
                 " and makes " + std::to_string(s.out_channels) + ": both must be multiples of the number of groups");
  }
  s.offset_groups = places[3] / (2 * s.points());
  if (s.offset_groups < 1 || places[3] % (2 * s.points()) != 0 || s.channels % s.offset_groups != 0) {
    return Wrong("the last dimension of offset is " + std::to_string(places[3]) + ", but must be 2 * " +
                 std::to_string(s.points()) + " points of the kernel for each group of the " +
                 std::to_string(s.channels) + " channels");
  }
  if (mask != nullptr && 2 * mask->dimensions()[3] != places[3]) {
    return Wrong("the last dimension of mask is " + std::to_string(mask->dimensions()[3]) + ", but must be half of " +
                 std::to_string(places[3]) + ", that of offset");
  }
  if (ffi::Error wrong = CheckSteps("height", along_y, s.height, s.kernel_height, s.out_height); wrong.failure()) {
    return wrong;
  }
  return CheckSteps("width", along_x, s.width, s.kernel_width, s.out_width);
}

}  // namespace deform
}  // namespace tftoolkit

#endif  // TFTOOLKIT_DEFORM_CONV2D_PROBLEM_H_
