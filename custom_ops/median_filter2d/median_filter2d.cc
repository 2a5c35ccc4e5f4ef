// The median of the window around each pixel, on the CPU; channels on their own.
//
// The floor is memory traffic: each number read and written once. Windows of up to kMostSorted pixels are sorted by a
// network (Batcher's odd-even merge sort, of which those comparators stay that the median depends on): a fixed sequence
// of minima and maxima, which is carried out for kLanes neighbouring numbers at a time, as vectors. 3 x 3 take about 20
// of them, 5 x 5 about 130. Larger windows are gathered and partitioned, one number after the other.
//
// Rows are padded first, as many as a window has; the next window's are the same but one.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Data;
using tftoolkit::Half;
using Result = ffi::Result<ffi::AnyBuffer>;

constexpr int64_t kLanes = 64;
constexpr int64_t kMostSorted = 225;         // 15 x 15: then to partition is faster
constexpr int64_t kPixelsPerTask = 1 << 15;  // times comparators
constexpr int64_t kMostPixels = 1 << 17;     // of a window: the work grows with it, and nobody can stop it

enum Padding : int32_t { kReflect, kConstant, kSymmetric };

// What the pixels are compared as.
template <typename T>
struct Working {
  using Type = T;
  static T From(T value) { return value; }
  static T To(T value) { return value; }
};

template <typename T>
struct Narrow {
  using Type = float;
  TK_INLINE static float From(T value) { return tftoolkit::Load(value); }
  TK_INLINE static T To(float value) { return tftoolkit::Store<T>(value); }
};
template <>
struct Working<BFloat16> : Narrow<BFloat16> {};
template <>
struct Working<Half> : Narrow<Half> {};

// Half of the sum, rounded toward 0 where numbers are whole, as a cast rounds; it cannot overflow.
template <typename W>
TK_INLINE W Middle(W low, W high) {
  if constexpr (std::is_same_v<W, double>) {
    return low == high ? low : low / 2 + high / 2;
  } else if constexpr (std::is_same_v<W, float>) {
    return static_cast<float>((static_cast<double>(low) + high) / 2);
  } else if constexpr (sizeof(W) == 8) {
    return static_cast<W>((static_cast<__int128>(low) + high) / 2);
  } else {
    return static_cast<W>((static_cast<int64_t>(low) + high) / 2);
  }
}

// Puts the smaller of two numbers first. What nobody reads afterwards is not stored.
struct Comparator {
  int32_t first, second;
  bool stores_first, stores_second;
};

// Those of Batcher's network for `count` numbers, that places `low` and `high` depend on. Numbers are padded to a power
// of two by infinite ones at the end, which stay there.
std::vector<Comparator> Network(int64_t count, int64_t low, int64_t high) {
  std::vector<Comparator> all;
  for (int64_t p = 1; p < count; p *= 2) {
    for (int64_t k = p; k >= 1; k /= 2) {
      for (int64_t j = k % p; j + k < count; j += 2 * k) {
        for (int64_t i = 0; i < k && i + j + k < count; ++i) {
          if ((i + j) / (2 * p) != (i + j + k) / (2 * p)) continue;
          all.push_back({static_cast<int32_t>(i + j), static_cast<int32_t>(i + j + k), false, false});
        }
      }
    }
  }
  std::vector<bool> needed(count, false);
  needed[low] = needed[high] = true;
  std::vector<Comparator> kept;
  for (auto one = all.rbegin(); one != all.rend(); ++one) {
    if (!needed[one->first] && !needed[one->second]) continue;
    kept.push_back({one->first, one->second, needed[one->first], needed[one->second]});
    needed[one->first] = needed[one->second] = true;
  }
  std::reverse(kept.begin(), kept.end());
  return kept;
}

struct Window {
  int64_t rows, columns, low, high;  // low and high: the places of the middle numbers
  std::vector<Comparator> network;   // none: partition

  int64_t area() const { return rows * columns; }
};

// The medians of `count` numbers, at most kLanes, of which the windows begin at `rows`[…] + `at`. `numbers`: kLanes for
// each pixel of a window.
template <typename T, typename W>
TK_INLINE void SortLanes(const Window& window, const W* const* rows, int64_t at, int64_t channels, int64_t count,
                         W* numbers, T* out) {
  bool nan[kLanes] = {};
  for (int64_t r = 0; r < window.rows; ++r) {
    for (int64_t c = 0; c < window.columns; ++c) {
      const W* from = rows[r] + at + c * channels;
      W* to = numbers + (r * window.columns + c) * kLanes;
      if (count == kLanes) {
        for (int64_t i = 0; i < kLanes; ++i) to[i] = from[i];
      } else {
        for (int64_t i = 0; i < kLanes; ++i) to[i] = i < count ? from[i] : W{};
      }
      if constexpr (std::is_floating_point_v<W>) {
        for (int64_t i = 0; i < kLanes; ++i) nan[i] |= to[i] != to[i];
      }
    }
  }
  for (const Comparator& one : window.network) {
    W* a = numbers + one.first * kLanes;
    W* b = numbers + one.second * kLanes;
    if (one.stores_first && one.stores_second) {
#pragma omp simd
      for (int64_t i = 0; i < kLanes; ++i) {
        const W x = a[i], y = b[i];
        a[i] = y < x ? y : x;
        b[i] = y < x ? x : y;
      }
    } else if (one.stores_first) {
#pragma omp simd
      for (int64_t i = 0; i < kLanes; ++i) a[i] = b[i] < a[i] ? b[i] : a[i];
    } else {
#pragma omp simd
      for (int64_t i = 0; i < kLanes; ++i) b[i] = b[i] < a[i] ? a[i] : b[i];
    }
  }
  const W *low = numbers + window.low * kLanes, *high = numbers + window.high * kLanes;
  for (int64_t i = 0; i < count; ++i) {
    W value = window.low == window.high ? low[i] : Middle(low[i], high[i]);
    if constexpr (std::is_floating_point_v<W>) value = nan[i] ? std::numeric_limits<W>::quiet_NaN() : value;
    out[i] = Working<T>::To(value);
  }
}

template <typename T, typename W>
void Partition(const Window& window, const W* const* rows, int64_t at, int64_t channels, W* numbers, T* out) {
  W* end = numbers;
  bool nan = false;
  for (int64_t r = 0; r < window.rows; ++r) {
    for (int64_t c = 0; c < window.columns; ++c) {
      const W value = rows[r][at + c * channels];
      nan |= value != value;
      *end++ = value;
    }
  }
  if (nan) {
    *out = Working<T>::To(std::numeric_limits<W>::quiet_NaN());
    return;
  }
  std::nth_element(numbers, numbers + window.high, end);
  W value = numbers[window.high];
  if (window.low != window.high) value = Middle(*std::max_element(numbers, numbers + window.high), value);
  *out = Working<T>::To(value);
}

#define TK_ROW(T)                                                                                                    \
  TK_SIMD void MedianRow(const Window& window, const Working<T>::Type* const* rows, int64_t width, int64_t channels, \
                         Working<T>::Type* numbers, T* out) {                                                        \
    for (int64_t at = 0; at < width * channels; at += kLanes) {                                                      \
      SortLanes(window, rows, at, channels, std::min(kLanes, width* channels - at), numbers, out + at);              \
    }                                                                                                                \
  }
TK_ROW(uint8_t)
TK_ROW(int8_t)
TK_ROW(uint16_t)
TK_ROW(int16_t)
TK_ROW(uint32_t)
TK_ROW(int32_t)
TK_ROW(uint64_t)
TK_ROW(int64_t)
TK_ROW(BFloat16)
TK_ROW(Half)
TK_ROW(float)
TK_ROW(double)

// The pixel that stands for pixel i of the padded axis, -1 for the constant. As often reflected as it takes.
int64_t Inside(int64_t i, int64_t size, int32_t padding) {
  if (i >= 0 && i < size) return i;
  if (padding == kConstant || size == 0) return -1;
  if (padding == kReflect && size == 1) return 0;
  const int64_t period = padding == kReflect ? 2 * size - 2 : 2 * size;
  const int64_t rest = (i % period + period) % period;
  return rest < size ? rest : (padding == kReflect ? period : period - 1) - rest;
}

struct Sizes {
  int64_t height, width, channels;
};

// The rows of an image from `y` on, padded, one after the other.
template <typename T>
class PaddedRows {
 public:
  using W = typename Working<T>::Type;

  PaddedRows(const Sizes& sizes, const Window& window, int32_t padding, W constant)
      : sizes_(sizes),
        window_(window),
        padding_(padding),
        constant_(constant),
        line_((sizes.width + window.columns - 1) * sizes.channels),
        lines_(window.rows * line_),
        rows_(window.rows) {}

  // Those of the window around row y: all, or where that of y - 1 is here, the last.
  const W* const* Of(const T* image, int64_t y, bool goes_on) {
    const int64_t top = y - (window_.rows - 1) / 2;
    for (int64_t r = goes_on ? window_.rows - 1 : 0; r < window_.rows; ++r) Fill(image, top + r);
    for (int64_t r = 0; r < window_.rows; ++r) rows_[r] = Line(top + r);
    return rows_.data();
  }

 private:
  W* Line(int64_t y) {
    const int64_t place = y % window_.rows;
    return lines_.data() + (place < 0 ? place + window_.rows : place) * line_;
  }

  void Fill(const T* image, int64_t y) {
    const int64_t channels = sizes_.channels, source = Inside(y, sizes_.height, padding_);
    const int64_t left = (window_.columns - 1) / 2;
    W* to = Line(y);
    for (int64_t x = -left; x < sizes_.width + window_.columns - 1 - left; ++x) {
      const int64_t column = source < 0 ? -1 : Inside(x, sizes_.width, padding_);
      const T* from = image + (source * sizes_.width + column) * channels;
      for (int64_t c = 0; c < channels; ++c) *to++ = column < 0 ? constant_ : Working<T>::From(from[c]);
    }
  }

  Sizes sizes_;
  const Window& window_;
  int32_t padding_;
  W constant_;
  int64_t line_;
  std::vector<W> lines_;
  std::vector<const W*> rows_;
};

template <typename T>
ffi::Error Filter(ffi::ThreadPool& pool, const ffi::AnyBuffer& images, T* out, const Window& window, int32_t padding,
                  double given) {
  using W = typename Working<T>::Type;
  if (std::is_integral_v<W>) {
    const bool fits = given >= static_cast<double>(std::numeric_limits<W>::min()) &&
                      given < static_cast<double>(std::numeric_limits<W>::max()) + 1;
    if (!fits) {
      return ffi::Error::InvalidArgument("constant must be a number that the images' dtype has, but is " +
                                         std::to_string(given));
    }
  }
  const auto dims = images.dimensions();
  const Sizes sizes{dims[1], dims[2], dims[3]};
  const int64_t line = sizes.width * sizes.channels, rows = dims[0] * sizes.height;
  if (line * rows == 0) return ffi::Error::Success();
  const W constant = Working<T>::From(Working<T>::To(static_cast<W>(given)));
  const T* pixels = Data<T>(images);
  const int64_t work = line * std::max<int64_t>(window.area(), window.network.size()) / 8;
  const int64_t per_task = std::max<int64_t>(1, kPixelsPerTask / std::max<int64_t>(1, work));
  tftoolkit::ParallelRanges(pool, rows, per_task, [&](int64_t first, int64_t count) {
    PaddedRows<T> padded(sizes, window, padding, constant);
    std::vector<W> numbers(window.area() * (window.network.empty() ? 1 : kLanes));
    for (int64_t row = first; row < first + count; ++row) {
      const int64_t y = row % sizes.height;
      const W* const* around = padded.Of(pixels + (row - y) * line, y, row > first && y > 0);
      if (!window.network.empty()) {
        MedianRow(window, around, sizes.width, sizes.channels, numbers.data(), out + row * line);
        continue;
      }
      for (int64_t i = 0; i < line; ++i) {
        Partition(window, around, i, sizes.channels, numbers.data(), out + row * line + i);
      }
    }
  });
  return ffi::Error::Success();
}

ffi::Error MedianFilter2d(ffi::ThreadPool pool, ffi::AnyBuffer images, Result y, int32_t columns, double constant,
                          int32_t padding, int32_t rows) {
  for (const auto& [name, size] : {std::pair("rows", rows), std::pair("columns", columns)}) {
    if (size < 1 || int64_t{rows} * columns > kMostPixels) {
      return ffi::Error::InvalidArgument(std::string(name) + " must be positive, and rows times columns at most " +
                                         std::to_string(kMostPixels) + ", but is " + std::to_string(size));
    }
  }
  if (padding < kReflect || padding > kSymmetric) {
    return ffi::Error::InvalidArgument("padding must be 0 to 2, but is " + std::to_string(padding));
  }
  Window window{rows, columns, 0, 0, {}};
  window.low = (window.area() - 1) / 2, window.high = window.area() / 2;
  if (window.area() > 1 && window.area() <= kMostSorted) {
    window.network = Network(window.area(), window.low, window.high);
  }
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    return Filter<T>(pool, images, Data<T>(y), window, padding, constant);
  };
  switch (images.element_type()) {
    case ffi::U8:
      return run(uint8_t{});
    case ffi::S8:
      return run(int8_t{});
    case ffi::U16:
      return run(uint16_t{});
    case ffi::S16:
      return run(int16_t{});
    case ffi::U32:
      return run(uint32_t{});
    case ffi::S32:
      return run(int32_t{});
    case ffi::U64:
      return run(uint64_t{});
    case ffi::S64:
      return run(int64_t{});
    case ffi::F64:
      return run(double{});
    default:
      return tftoolkit::WithFloatType("MedianFilter2d", images.element_type(), run);
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(MedianFilter2dCpu, MedianFilter2d,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<int32_t>("columns")
                           .Attr<double>("constant")
                           .Attr<int32_t>("padding")
                           .Attr<int32_t>("rows"));

TK_OP(
    MedianFilter2d,
    "<T: f32 | bf16 | f16 | f64 | u8 | i8 | u16 | i16 | u32 | i32 | u64 | i64>(images: T[batch height width channels],"
    " *, rows: i32 = 3, columns: i32 = 3, padding: i32 = 0, constant: f64 = 0.0)"
    " -> (y: T[batch height width channels])");
TK_KERNEL(MedianFilter2d, CPU, MedianFilter2dCpu);
