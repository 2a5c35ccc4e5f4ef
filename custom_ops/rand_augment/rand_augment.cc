// RandAugment of one picture on the CPU: some of 14 changes, one after the other, in place.
//
// The plain computation goes through the picture once per TensorFlow operation, ten to twenty times for each change,
// and mostly in float32. Here a change reads and writes every byte once. Where a new value depends on the old one alone
// it is taken from a table of 256; the affine changes and sharpness need a copy of the picture. 320 x 320 x 3 are 0.3
// MB, which stay in the cache: the floor is one table look-up, or some ten operations, per byte.
//
// Every value is that of the plain computation to the last bit: arithmetic is float32 in the same order, without fused
// multiply-adds. A picture is the work of one thread, as pictures are made side by side.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "tftoolkit/op.h"
#include "tftoolkit/simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#else
#pragma STDC FP_CONTRACT OFF
#endif

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int32_t kMaxMagnitude = 30;
constexpr uint8_t kFill = 128;  // what moves in at the borders

struct Picture {
  uint8_t* pixels;
  int64_t height, width, channels;

  int64_t line() const { return width * channels; }
  int64_t size() const { return height * line(); }
};

using Table = std::array<uint8_t, 256>;
using Tables = std::array<Table, 3>;  // one per channel

uint8_t Limited(float value) { return static_cast<uint8_t>(std::min(std::max(value, 0.0f), 255.0f)); }

// Replaces each value by its channel's table.
void LookUp(const Picture& picture, const Tables& tables) {
  uint8_t* const end = picture.pixels + picture.size();
  if (picture.channels == 1) {
    for (uint8_t* p = picture.pixels; p < end; ++p) *p = tables[0][*p];
  } else {
    for (uint8_t* p = picture.pixels; p < end; p += 3) {
      p[0] = tables[0][p[0]];
      p[1] = tables[1][p[1]];
      p[2] = tables[2][p[2]];
    }
  }
}

template <typename Function>
void MapValues(const Picture& picture, const Function& function) {
  Table table;
  for (int value = 0; value < 256; ++value) table[value] = function(value);
  LookUp(picture, {table, table, table});
}

std::array<std::array<int32_t, 256>, 3> Histograms(const Picture& picture) {
  std::array<std::array<int32_t, 256>, 3> counts{};
  const uint8_t* const end = picture.pixels + picture.size();
  for (const uint8_t* p = picture.pixels; p < end; p += picture.channels) {
    for (int64_t c = 0; c < picture.channels; ++c) ++counts[c][p[c]];
  }
  return counts;
}

// Luma of ITU-R BT.601 with Pillow's weights, rounded.
int32_t Gray(const uint8_t* p) { return (19595 * p[0] + 38470 * p[1] + 7471 * p[2] + 32768) >> 16; }

void AutoContrast(const Picture& picture) {
  const auto counts = Histograms(picture);
  Tables tables;
  for (int64_t c = 0; c < picture.channels; ++c) {
    int low = 0, high = 255;
    while (counts[c][low] == 0) ++low;
    while (counts[c][high] == 0) --high;
    const double scale = high > low ? 255.0 / (high - low) : 1.0;
    const double offset = high > low ? -low * scale : 0.0;
    for (int value = low; value <= high; ++value) tables[c][value] = static_cast<uint8_t>(value * scale + offset);
  }
  LookUp(picture, tables);
}

void Equalize(const Picture& picture) {
  const auto counts = Histograms(picture);
  const auto pixels = static_cast<int32_t>(picture.height * picture.width);
  Tables tables;
  for (int64_t c = 0; c < picture.channels; ++c) {
    int highest = 255;
    while (counts[c][highest] == 0) --highest;
    const int32_t step = (pixels - counts[c][highest]) / 255;
    int32_t before = 0;
    for (int value = 0; value < 256; ++value) {
      tables[c][value] = static_cast<uint8_t>(step ? std::min((step / 2 + before) / step, 255) : value);
      before += counts[c][value];
    }
  }
  LookUp(picture, tables);
}

TK_SIMD void Saturate(uint8_t* pixels, int64_t count, float factor) {
  for (uint8_t* p = pixels; p < pixels + 3 * count; p += 3) {
    const auto gray = static_cast<float>(Gray(p));
    for (int c = 0; c < 3; ++c) p[c] = Limited(gray + factor * (static_cast<float>(p[c]) - gray));
  }
}

void Contrast(const Picture& picture, float factor) {
  const int64_t count = picture.height * picture.width;
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* p = picture.pixels + i * picture.channels;
    sum += picture.channels == 1 ? *p : Gray(p);
  }
  const auto mean = static_cast<float>((2 * sum + count) / (2 * count));
  MapValues(picture, [=](int value) { return Limited(mean + factor * (static_cast<float>(value) - mean)); });
}

// One line, which is not at the border; `above`, `line` and `below` are copies of the old ones.
TK_SIMD void SharpenLine(const uint8_t* above, const uint8_t* line, const uint8_t* below, uint8_t* out, int64_t length,
                         int64_t channels, float factor) {
  for (int64_t i = channels; i < length - channels; ++i) {
    const int64_t left = i - channels, right = i + channels;
    const int32_t around =
        above[left] + above[i] + above[right] + line[left] + line[right] + below[left] + below[i] + below[right];
    const int32_t total = around + 5 * line[i];
    const auto low = static_cast<float>((2 * total + 13) / 26);  // total / 13, rounded
    out[i] = Limited(low + factor * (static_cast<float>(line[i]) - low));
  }
}

// `copy` has room for the picture.
void Sharpen(const Picture& picture, float factor, uint8_t* copy) {
  const int64_t line = picture.line();
  std::memcpy(copy, picture.pixels, picture.size());
  for (int64_t y = 1; y + 1 < picture.height; ++y) {
    const uint8_t* middle = copy + y * line;
    SharpenLine(middle - line, middle, middle + line, picture.pixels + y * line, line, picture.channels, factor);
  }
}

// Pixel (x, y) becomes that at (a x + b y + c, d x + e y + f), x and y at pixel centres.
struct Matrix {
  float a, b, c, d, e, f;
};

TK_SIMD void SourcesOfLine(const Matrix& m, int64_t y, int64_t height, int64_t width, int32_t* sources) {
  const float middle = static_cast<float>(y) + 0.5f;
  const float from_x = m.b * middle + m.c, from_y = m.e * middle + m.f;
  const auto right = static_cast<float>(width), bottom = static_cast<float>(height);
  const auto stride = static_cast<int32_t>(width + 2);
  for (int32_t x = 0; x < static_cast<int32_t>(width); ++x) {
    const float at = static_cast<float>(x) + 0.5f;
    const float column = std::min(std::max(std::floor(m.a * at + from_x), -1.0f), right);
    const float row = std::min(std::max(std::floor(m.d * at + from_y), -1.0f), bottom);
    sources[x] = (static_cast<int32_t>(row) + 1) * stride + static_cast<int32_t>(column) + 1;
  }
}

template <int channels>
void Gather(const uint8_t* framed, const int32_t* sources, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(out + i * channels, framed + sources[i] * channels, channels);
}

// `framed` has room for the picture and a line of one pixel around it, which takes up all that comes from outside.
void Affine(const Picture& picture, const Matrix& matrix, uint8_t* framed, int32_t* sources) {
  const int64_t line = picture.line(), channels = picture.channels;
  const int64_t framed_line = line + 2 * channels;
  std::memset(framed, kFill, (picture.height + 2) * framed_line);
  for (int64_t y = 0; y < picture.height; ++y) {
    std::memcpy(framed + (y + 1) * framed_line + channels, picture.pixels + y * line, line);
  }
  for (int64_t y = 0; y < picture.height; ++y) {
    SourcesOfLine(matrix, y, picture.height, picture.width, sources);
    (channels == 1 ? Gather<1> : Gather<3>)(framed, sources, picture.width, picture.pixels + y * line);
  }
}

// Shear x and y, translate x and y, rotate.
Matrix MatrixOf(int32_t number, const Picture& picture, float sign, double part) {
  const auto height = static_cast<float>(picture.height), width = static_cast<float>(picture.width);
  const float shear = sign * static_cast<float>(0.3 * part);
  const auto shift = static_cast<float>(150.0 / 331.0 * part);
  switch (number) {
    case 0:
      return {1, shear, 0, 0, 1, 0};
    case 1:
      return {1, 0, 0, shear, 1, 0};
    case 2:
      return {1, 0, sign * std::floor(width * shift), 0, 1, 0};
    case 3:
      return {1, 0, 0, 0, 1, sign * std::floor(height * shift)};
    default: {
      const double angle = 30 * part * (kPi / 180);
      const auto cos = static_cast<float>(std::cos(angle)), rest = static_cast<float>(1 - std::cos(angle));
      const float sin = -sign * static_cast<float>(std::sin(angle));
      const float x = width / 2, y = height / 2;
      return {cos, sin, rest * x - sin * y, -sin, cos, rest * y + sin * x};
    }
  }
}

enum Change {
  kIdentity,
  kAutoContrast,
  kEqualize,
  kBrightness,
  kColor,
  kContrast,
  kSharpness,
  kPosterize,
  kSolarize,
  kFirstAffine,
  kChanges = kFirstAffine + 5
};

void Apply(const Picture& picture, int32_t number, float sign, int32_t magnitude, uint8_t* copy, int32_t* sources) {
  const double part = static_cast<double>(magnitude) / kMaxMagnitude;
  const float factor = 1.0f + sign * static_cast<float>(0.9 * part);
  switch (number) {
    case kIdentity:
      return;
    case kAutoContrast:
      return AutoContrast(picture);
    case kEqualize:
      return Equalize(picture);
    case kBrightness:
      return MapValues(picture, [=](int value) { return Limited(static_cast<float>(value) * factor); });
    case kColor:
      if (picture.channels == 3) Saturate(picture.pixels, picture.height * picture.width, factor);
      return;
    case kContrast:
      return Contrast(picture, factor);
    case kSharpness:
      return Sharpen(picture, factor, copy);
    case kPosterize: {
      const int kept = 256 - (1 << static_cast<int>(std::nearbyint(4 * part)));
      return MapValues(picture, [=](int value) { return static_cast<uint8_t>(value & kept); });
    }
    case kSolarize: {
      const int threshold = static_cast<int>(std::ceil(256 * (1 - part)));
      return MapValues(picture,
                       [=](int value) { return static_cast<uint8_t>(value >= threshold ? 255 - value : value); });
    }
    default:
      return Affine(picture, MatrixOf(number - kFirstAffine, picture, sign, part), copy, sources);
  }
}

ffi::Error RandAugment(ffi::Buffer<ffi::U8> image, ffi::Buffer<ffi::S32> numbers, ffi::Buffer<ffi::PRED> negative,
                       ffi::Result<ffi::Buffer<ffi::U8>> changed, int32_t magnitude) {
  const auto sizes = image.dimensions();
  const Picture picture{changed->typed_data(), sizes[0], sizes[1], sizes[2]};
  if (picture.channels != 1 && picture.channels != 3) {
    return ffi::Error::InvalidArgument("image must have 1 or 3 channels, got " + std::to_string(picture.channels));
  }
  if (magnitude < 0 || magnitude > kMaxMagnitude) {
    return ffi::Error::InvalidArgument("magnitude must be 0 to 30, got " + std::to_string(magnitude));
  }
  const int64_t frame = (picture.height + 2) * (picture.width + 2);
  if (frame > INT32_MAX) return ffi::Error::InvalidArgument("image has more than 2^31 pixels");
  if (picture.size() == 0) return ffi::Error::Success();
  std::memcpy(picture.pixels, image.typed_data(), picture.size());
  const std::unique_ptr<uint8_t[]> copy(new (std::nothrow) uint8_t[frame * picture.channels]);
  const std::unique_ptr<int32_t[]> sources(new (std::nothrow) int32_t[picture.width]);
  if (!copy || !sources) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a copy of the picture");
  for (size_t i = 0; i < numbers.element_count(); ++i) {
    const int32_t number = numbers.typed_data()[i];
    if (number < 0 || number >= kChanges) {
      return ffi::Error::InvalidArgument("numbers must be 0 to 13, got " + std::to_string(number));
    }
    const float sign = negative.typed_data()[i] ? -1.0f : 1.0f;
    Apply(picture, number, sign, magnitude, copy.get(), sources.get());
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(RandAugmentCpu, RandAugment,
                       ffi::Ffi::Bind()
                           .Arg<ffi::Buffer<ffi::U8>>()
                           .Arg<ffi::Buffer<ffi::S32>>()
                           .Arg<ffi::Buffer<ffi::PRED>>()
                           .Ret<ffi::Buffer<ffi::U8>>()
                           .Attr<int32_t>("magnitude"));

TK_OP(RandAugment,
      "(image: u8[height width channels], numbers: i32[layers], negative: bool[layers], *, magnitude: i32)"
      " -> (changed: u8[height width channels])");
TK_KERNEL(RandAugment, CPU, RandAugmentCpu);
