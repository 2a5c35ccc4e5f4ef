// The distance of each pixel that is not 0 to the nearest one that is, on the CPU; exact (Felzenszwalb & Huttenlocher
// 2012, with whole numbers as in Meijster, Roerdink & Hesselink 2000).
//
//   g[y, x] = distance to the nearest 0 in column x        d[y, x]^2 = min over u of (x - u)^2 + g[y, u]^2
//
// The first is a sweep down and one up over whole rows, which are vectors. The second is the lower envelope of a row's
// parabolas: a stack of those that are lowest somewhere, each pushed and taken off once. All of it is linear in the
// number of pixels and in whole numbers, so the only rounding is the root's.
//
// The floor is memory traffic: a byte read and a distance written for each pixel. g costs 4 bytes more, written twice
// and read three times.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace {

using tftoolkit::Data;
using tftoolkit::Half;
using Result = ffi::Result<ffi::AnyBuffer>;

constexpr int64_t kColumns = 256;            // of a task: a row of them stays in the first cache
constexpr int64_t kPixelsPerTask = 1 << 14;  // some 100 µs
constexpr int64_t kLongest = 1 << 30;        // of an axis: sums of squares fit 64 bits, distances 32

// The distances along columns, `width` apart; `none` or more where a column has no 0.
TK_SIMD void SweepColumns(const uint8_t* image, int64_t height, int64_t width, int64_t columns, int32_t none,
                          int32_t* distances) {
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* row = image + y * width;
    int32_t* here = distances + y * width;
    const int32_t* above = here - (y > 0 ? width : 0);
    const bool first = y == 0;
#pragma omp simd
    for (int64_t x = 0; x < columns; ++x) {
      const int32_t next = first ? none : std::min(above[x], none - 1) + 1;
      here[x] = row[x] == 0 ? 0 : next;
    }
  }
  for (int64_t y = height - 2; y >= 0; --y) {
    int32_t* here = distances + y * width;
    const int32_t* below = here + width;
#pragma omp simd
    for (int64_t x = 0; x < columns; ++x) here[x] = std::min(here[x], std::min(below[x], none - 1) + 1);
  }
}

// A column whose parabola is the lowest from `begin` on.
struct Part {
  int64_t column, begin, height;  // height: g^2
};

// From which column on the parabola of `right` is lower than that of `left`, which stands left of it.
int64_t Crossing(const Part& left, int64_t column, int64_t height) {
  const int64_t sum = column * column - left.column * left.column + height - left.height;
  const int64_t twice = 2 * (column - left.column);
  // Rounded up; sums may be negative.
  return sum >= 0 ? (sum + twice - 1) / twice : -(-sum / twice);
}

// `parts` has room for a row.
template <typename Store>
void Row(const int32_t* g, int64_t width, int32_t none, Part* parts, const Store& store) {
  int64_t count = 0;
  for (int64_t u = 0; u < width; ++u) {
    if (g[u] >= none) continue;
    const int64_t height = static_cast<int64_t>(g[u]) * g[u];
    int64_t begin = 0;
    while (count > 0) {
      begin = Crossing(parts[count - 1], u, height);
      if (begin > parts[count - 1].begin) break;
      --count;
      begin = 0;
    }
    if (begin < width) parts[count++] = {u, begin, height};
  }
  int64_t part = 0;
  for (int64_t x = 0; x < width; ++x) {
    while (part + 1 < count && parts[part + 1].begin <= x) ++part;
    const int64_t step = x - (count > 0 ? parts[part].column : 0);
    store(x, count > 0 ? step * step + parts[part].height : int64_t{-1});
  }
}

template <typename T>
T Distance(int64_t squared) {
  // Without any 0, as far as the type goes.
  return squared < 0 ? std::numeric_limits<T>::max() : std::sqrt(static_cast<T>(squared));
}

// A root that is rounded to 53 bits and then to 11 is the nearest of 11: it lies at no half, or is exact.
template <>
Half Distance<Half>(int64_t squared) {
  const float root = squared < 0 ? 65504.0f : static_cast<float>(std::sqrt(static_cast<double>(squared)));
  return tftoolkit::Store<Half>(root);
}

// In double: squares have up to 61 bits.
template <>
float Distance<float>(int64_t squared) {
  return squared < 0 ? std::numeric_limits<float>::max() : static_cast<float>(std::sqrt(static_cast<double>(squared)));
}

template <typename T>
ffi::Error Transform(ffi::ThreadPool& pool, const ffi::AnyBuffer& images, T* out) {
  const auto sizes = images.dimensions();
  const int64_t width = sizes.back(), height = sizes[sizes.size() - 2], all = images.element_count();
  if (all == 0) return ffi::Error::Success();
  if (std::max(width, height) > kLongest) {
    return ffi::Error::InvalidArgument("images has an axis of more than 2^30 pixels");
  }
  const auto none = static_cast<int32_t>(height);  // no column has a longer way
  const std::unique_ptr<int32_t[]> distances(new (std::nothrow) int32_t[all]);
  if (!distances) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for the distances along columns");
  const uint8_t* pixels = Data<uint8_t>(images);
  const int64_t bands = (width + kColumns - 1) / kColumns, batch = all / (height * width);
  tftoolkit::ParallelFor(pool, batch * bands, [&](int64_t i) {
    const int64_t column = i % bands * kColumns, at = i / bands * height * width + column;
    SweepColumns(pixels + at, height, width, std::min(kColumns, width - column), none, distances.get() + at);
  });
  const int64_t rows_per_task = std::max<int64_t>(1, kPixelsPerTask / width);
  tftoolkit::ParallelRanges(pool, batch * height, rows_per_task, [&](int64_t first, int64_t count) {
    std::vector<Part> parts(width);
    for (int64_t y = first; y < first + count; ++y) {
      T* row = out + y * width;
      Row(distances.get() + y * width, width, none, parts.data(),
          [row](int64_t x, int64_t squared) { row[x] = Distance<T>(squared); });
    }
  });
  return ffi::Error::Success();
}

ffi::Error EuclideanDistanceTransform(ffi::ThreadPool pool, ffi::AnyBuffer images, Result distances) {
  switch (distances->element_type()) {
    case ffi::F16:
      return Transform(pool, images, Data<Half>(distances));
    case ffi::F64:
      return Transform(pool, images, Data<double>(distances));
    default:
      return Transform(pool, images, Data<float>(distances));
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(EuclideanDistanceTransformCpu, EuclideanDistanceTransform,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

TK_OP(EuclideanDistanceTransform,
      "<T: f32 | f16 | f64>(images: u8[... height width], *, dtype: T = f32) -> (distances: T[... height width])"
      " batchable");
TK_KERNEL(EuclideanDistanceTransform, CPU, EuclideanDistanceTransformCpu);
