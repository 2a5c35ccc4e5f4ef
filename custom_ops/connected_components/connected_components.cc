// Connected components of a batch of images on the CPU: neighbours above, below, left and right with the same value
// that is not 0 are one. Components are numbered from 1 through the whole batch, in the order of their first pixels.
//
// The floor is memory traffic: each pixel is read and its label written once. In between, an image is a list of runs:
// equal pixels side by side. Each run is united with those above that it touches (union-find, the earlier run is the
// root, Rosenfeld & Pfaltz 1966), so roots come in the order of first pixels and a walk through the list numbers them.
// Of noise there are as many runs as pixels, of drawings a few in each row.
//
// A task finds the runs of a strip of rows and unites them; between strips, and between images, there is little left to
// do. Labels do not depend on where strips end.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"

namespace {

using tftoolkit::Data;
using Result = ffi::Result<ffi::AnyBuffer>;

constexpr int64_t kPixelsPerStrip = 1 << 16;  // some 100 µs
constexpr int64_t kMostLabels = INT32_MAX;

// How bits are read: as whole numbers, or as floats, of which -0 is 0 too and NaN equals nothing.
template <typename Bits, Bits kInfinity>
struct Pixels {
  using Type = Bits;
  static constexpr Bits kMagnitude = kInfinity ? static_cast<Bits>(~Bits{0}) >> 1 : static_cast<Bits>(~Bits{0});
  static bool IsZero(Bits value) { return (value & kMagnitude) == 0; }
  static bool Same(Bits one, Bits other) { return one == other && (kInfinity == 0 || (one & kMagnitude) <= kInfinity); }
};

// Pixels begin … end - 1 of a row.
struct Run {
  int32_t begin, end;
};

struct Strip {
  std::vector<Run> runs;
  std::vector<int64_t> rows;     // of each row the first run, and their number at the end
  std::vector<int64_t> parents;  // of each run an earlier one that touches it, or itself
};

// A run's root. Halves the way there for those who come later.
int64_t Root(std::vector<int64_t>& parents, int64_t run) {
  while (parents[run] != run) run = parents[run] = parents[parents[run]];
  return run;
}

void Unite(std::vector<int64_t>& parents, int64_t one, int64_t other) {
  one = Root(parents, one), other = Root(parents, other);
  parents[std::max(one, other)] = std::min(one, other);
}

// Unites the runs of two rows where they touch: `count` runs at `runs`, the first of them number `first`.
template <typename P>
void UniteRows(const typename P::Type* above, const Run* runs_above, int64_t first_above, int64_t count_above,
               const typename P::Type* row, const Run* runs, int64_t first, int64_t count,
               std::vector<int64_t>& parents) {
  for (int64_t i = 0, j = 0; i < count_above && j < count;) {
    const Run one = runs_above[i], other = runs[j];
    if (one.begin < other.end && other.begin < one.end && P::Same(above[one.begin], row[other.begin])) {
      Unite(parents, first_above + i, first + j);
    }
    if (one.end < other.end) {
      ++i;
    } else {
      ++j;
    }
  }
}

template <typename P>
void FindRuns(const typename P::Type* image, int64_t rows, int64_t width, Strip* strip) {
  // As many runs as two values can have; what is not used is never touched.
  strip->runs.reserve(rows * ((width + 1) / 2));
  strip->parents.reserve(rows * ((width + 1) / 2));
  for (int64_t y = 0; y < rows; ++y) {
    const auto* row = image + y * width;
    strip->rows.push_back(strip->runs.size());
    for (int64_t x = 0; x < width;) {
      const int64_t begin = x++;
      if (P::IsZero(row[begin])) continue;
      while (x < width && P::Same(row[begin], row[x])) ++x;
      strip->parents.push_back(strip->runs.size());
      strip->runs.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(x)});
    }
    if (y > 0) {
      const int64_t above = strip->rows[y - 1], here = strip->rows[y], end = strip->runs.size();
      UniteRows<P>(row - width, strip->runs.data() + above, above, here - above, row, strip->runs.data() + here, here,
                   end - here, strip->parents);
    }
  }
  strip->rows.push_back(strip->runs.size());
}

// The labels of all runs, those of one strip after the other. `firsts`: of each strip the first run.
template <typename P>
std::vector<int64_t> Labels(const typename P::Type* images, const std::vector<Strip>& strips, int64_t per_image,
                            int64_t rows_per_strip, int64_t height, int64_t width, std::vector<int64_t>* firsts,
                            int64_t* count) {
  std::vector<int64_t> parents;
  for (const Strip& strip : strips) {
    firsts->push_back(parents.size());
    for (int64_t parent : strip.parents) parents.push_back(firsts->back() + parent);
  }
  for (size_t s = 1; s < strips.size(); ++s) {
    if (s % per_image == 0) continue;  // another image
    const Strip &above = strips[s - 1], &here = strips[s];
    const int64_t last = above.rows.size() - 2, from = above.rows[last];
    const auto* row = images + (s / per_image * height + s % per_image * rows_per_strip) * width;
    UniteRows<P>(row - width, above.runs.data() + from, (*firsts)[s - 1] + from, above.rows[last + 1] - from, row,
                 here.runs.data(), (*firsts)[s], here.rows[1], parents);
  }
  // A parent comes before its child: it has its label already.
  *count = 0;
  for (size_t i = 0; i < parents.size(); ++i) {
    const auto run = static_cast<int64_t>(i);
    parents[i] = parents[i] == run ? ++*count : parents[parents[i]];
  }
  return parents;
}

template <typename P>
ffi::Error Label(ffi::ThreadPool& pool, const ffi::AnyBuffer& images, int32_t* labels) {
  const auto sizes = images.dimensions();
  const int64_t width = sizes.back(), height = sizes[sizes.size() - 2];
  if (images.element_count() == 0) return ffi::Error::Success();
  if (width > INT32_MAX) return ffi::Error::InvalidArgument("images has rows of more than 2^31 - 1 pixels");
  const auto* pixels = Data<typename P::Type>(images);
  const int64_t batch = static_cast<int64_t>(images.element_count()) / (height * width);
  const int64_t rows = std::min(height, std::max<int64_t>(1, kPixelsPerStrip / width));
  const int64_t per_image = (height + rows - 1) / rows;
  std::vector<Strip> strips(batch * per_image);
  const auto first_row = [=](int64_t strip) { return strip / per_image * height + strip % per_image * rows; };
  const auto row_count = [=](int64_t strip) { return std::min(rows, height - strip % per_image * rows); };
  tftoolkit::ParallelFor(pool, batch * per_image, [&](int64_t s) {
    FindRuns<P>(pixels + first_row(s) * width, row_count(s), width, &strips[s]);
  });
  std::vector<int64_t> firsts;
  int64_t count = 0;
  const std::vector<int64_t> found = Labels<P>(pixels, strips, per_image, rows, height, width, &firsts, &count);
  if (count > kMostLabels) {
    return ffi::Error::InvalidArgument("images has " + std::to_string(count) +
                                       " components, more than int32 can count");
  }
  tftoolkit::ParallelFor(pool, batch * per_image, [&](int64_t s) {
    const Strip& strip = strips[s];
    int32_t* out = labels + first_row(s) * width;
    std::fill_n(out, row_count(s) * width, 0);
    for (int64_t y = 0; y < row_count(s); ++y, out += width) {
      for (int64_t run = strip.rows[y]; run < strip.rows[y + 1]; ++run) {
        const Run here = strip.runs[run];
        std::fill(out + here.begin, out + here.end, static_cast<int32_t>(found[firsts[s] + run]));
      }
    }
  });
  return ffi::Error::Success();
}

ffi::Error ConnectedComponents(ffi::ThreadPool pool, ffi::AnyBuffer images, Result labels) {
  int32_t* out = Data<int32_t>(labels);
  switch (images.element_type()) {
    case ffi::PRED:
    case ffi::U8:
    case ffi::S8:
      return Label<Pixels<uint8_t, 0>>(pool, images, out);
    case ffi::U16:
    case ffi::S16:
      return Label<Pixels<uint16_t, 0>>(pool, images, out);
    case ffi::U32:
    case ffi::S32:
      return Label<Pixels<uint32_t, 0>>(pool, images, out);
    case ffi::U64:
    case ffi::S64:
      return Label<Pixels<uint64_t, 0>>(pool, images, out);
    case ffi::F16:
      return Label<Pixels<uint16_t, 0x7c00>>(pool, images, out);
    case ffi::BF16:
      return Label<Pixels<uint16_t, 0x7f80>>(pool, images, out);
    case ffi::F32:
      return Label<Pixels<uint32_t, 0x7f800000>>(pool, images, out);
    case ffi::F64:
      return Label<Pixels<uint64_t, 0x7ff0000000000000>>(pool, images, out);
    default:
      return ffi::Error::InvalidArgument("ConnectedComponents takes bool, whole numbers and floats");
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(ConnectedComponentsCpu, ConnectedComponents,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

// Not batchable: numbers go on from image to image.
TK_OP(ConnectedComponents,
      "<T: bool | u8 | i8 | u16 | i16 | u32 | i32 | u64 | i64 | f16 | bf16 | f32 | f64>(images: T[... height width])"
      " -> (labels: i32[... height width])");
TK_KERNEL(ConnectedComponents, CPU, ConnectedComponentsCpu);
