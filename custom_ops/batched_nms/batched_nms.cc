// Non-maximum suppression within classes on the CPU: by falling score, a box is kept unless a kept box of its class
// overlaps it by more than the threshold.
//
// Candidates come in the order of all scores, and each is compared with the kept boxes of its class alone, which lie
// side by side: some 12 operations and 20 bytes from the cache for each pair, and no more pairs once `max_output` boxes
// are kept. (To strike out what each kept box overlaps, as one writes it, is the same number of pairs, but all of
// them.) Sets of boxes are the tasks; one set is the work of one thread, since each decision rests on those before.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")  // see boxes.h
#else
#pragma STDC FP_CONTRACT OFF
#endif

#include "tftoolkit/boxes.h"

namespace {

using tftoolkit::Box;
using tftoolkit::BoxArrays;
using tftoolkit::Data;
using Result = ffi::Result<ffi::AnyBuffer>;

TK_SIMD bool OverlapsAny(const Box& box, const BoxArrays::Pointers& kept, int64_t count, float threshold) {
  constexpr int64_t kStep = 32;  // after so many it looks whether there was one
  for (int64_t first = 0; first < count; first += kStep) {
    const int64_t end = std::min(first + kStep, count);
    int32_t found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t i = first; i < end; ++i) found |= tftoolkit::Overlap(box, kept, i) > threshold ? 1 : 0;
    if (found) return true;
  }
  return false;
}

// The largest float that is not above the threshold: a float is greater than the one just when it is than the other.
float AsFloat(double threshold) {
  const float near = static_cast<float>(threshold);
  return near > threshold ? std::nextafter(near, -std::numeric_limits<float>::infinity()) : near;
}

// A number that is the smaller, the greater the score is; of equal scores, the smaller the index is.
uint64_t Rank(float score, int64_t index) {
  const uint32_t bits = tftoolkit::FloatBits(score + 0.0f);  // -0 is 0
  const uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~rising) << 32 | static_cast<uint64_t>(index);
}

// For each candidate the place where the kept boxes of its class begin, and how many those are so far.
class Kept {
 public:
  Kept(const std::vector<int64_t>& classes) : boxes_(static_cast<int64_t>(classes.size())) {
    std::vector<int64_t> sorted = classes;
    std::sort(sorted.begin(), sorted.end());
    begins_.reserve(classes.size());
    for (const int64_t one : classes) {
      begins_.push_back(std::lower_bound(sorted.begin(), sorted.end(), one) - sorted.begin());
    }
    counts_.resize(classes.size());
  }

  bool Keep(int64_t candidate, const Box& box, float threshold) {
    const int64_t begin = begins_[candidate];
    int64_t& count = counts_[begin];
    if (OverlapsAny(box, boxes_.From(begin), count, threshold)) return false;
    boxes_.Set(begin + count, box);
    ++count;
    return true;
  }

 private:
  BoxArrays boxes_;
  std::vector<int64_t> begins_, counts_;
};

struct Options {
  float iou_threshold, score_threshold;
  int64_t max_output;
};

// One set of n boxes. `classes` is null where all have the same.
template <typename T, typename I>
void Suppress(const T* boxes, const T* scores, const I* classes, int64_t n, const Options& options, int32_t* indices,
              int32_t* count) {
  std::vector<uint64_t> ranks;
  for (int64_t i = 0; i < n; ++i) {
    const float score = tftoolkit::Load(scores[i]);
    if (score > options.score_threshold && !tftoolkit::HasNan(tftoolkit::LoadBox(boxes + 4 * i))) {
      ranks.push_back(Rank(score, i));
    }
  }
  std::sort(ranks.begin(), ranks.end());
  std::vector<int64_t> own(ranks.size(), 0);
  for (size_t i = 0; classes != nullptr && i < ranks.size(); ++i) own[i] = classes[ranks[i] & 0xffffffffu];
  Kept kept(own);
  int64_t found = 0;
  for (size_t i = 0; i < ranks.size() && found < options.max_output; ++i) {
    const int64_t index = static_cast<int64_t>(ranks[i] & 0xffffffffu);
    if (kept.Keep(static_cast<int64_t>(i), tftoolkit::LoadBox(boxes + 4 * index), options.iou_threshold)) {
      indices[found++] = static_cast<int32_t>(index);
    }
  }
  std::fill(indices + found, indices + options.max_output, -1);
  *count = static_cast<int32_t>(found);
}

ffi::Error BatchedNms(ffi::ThreadPool pool, ffi::AnyBuffer boxes, ffi::AnyBuffer scores, ffi::AnyBuffer classes,
                      Result indices, Result count, bool has_classes, double iou_threshold, int64_t max_output,
                      float score_threshold) {
  if (!(iou_threshold >= 0)) {
    return ffi::Error::InvalidArgument("iou_threshold must be at least 0, but is " + std::to_string(iou_threshold));
  }
  const int64_t n = scores.dimensions().back(), sets = static_cast<int64_t>(count->element_count());
  if (n > std::numeric_limits<int32_t>::max()) {
    return ffi::Error::InvalidArgument("there may be 2^31 - 1 boxes, but are " + std::to_string(n));
  }
  const Options options{AsFloat(iou_threshold), score_threshold, max_output};
  return tftoolkit::WithFloatType("BatchedNms", boxes.element_type(), [&](auto type) {
    return tftoolkit::WithIntegerType("BatchedNms", classes.element_type(), [&](auto integer) {
      using T = decltype(type);
      using I = decltype(integer);
      const I* own = has_classes ? Data<I>(classes) : nullptr;
      tftoolkit::ParallelFor(pool, sets, [&](int64_t set) {
        Suppress(Data<T>(boxes) + 4 * n * set, Data<T>(scores) + n * set, own ? own + n * set : nullptr, n, options,
                 Data<int32_t>(indices) + max_output * set, Data<int32_t>(count) + set);
      });
      return ffi::Error::Success();
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(BatchedNmsCpu, BatchedNms,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("has_classes")
                           .Attr<double>("iou_threshold")
                           .Attr<int64_t>("max_output")
                           .Attr<float>("score_threshold"));

TK_OP(BatchedNms,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(boxes: T[... n 4], scores: T[... n], classes?: I[... n], *, iou_threshold: f64, max_output: i64,"
      " score_threshold: f32) -> (indices: i32[... max_output], count: i32[...]) batchable");
TK_KERNEL(BatchedNms, CPU, BatchedNmsCpu);
