// Soft non-maximum suppression on the CPU: again and again the box with the highest score is taken, and the scores of
// those of its class that overlap it fall.
//
// Each box that is taken costs one pass over those that are left, some 15 operations each (and an exponential with the
// Gaussian); in the same pass the next highest score is found, so nothing is sorted. Sets of boxes are the tasks; one
// set is the work of one thread.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/math.h"
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

struct Options {
  float iou_threshold, inverse_sigma, score_threshold;
  bool gaussian;
  int64_t max_output;
};

// The factors by which `box` lowers others.
TK_SIMD void Decay(const Box& box, const BoxArrays::Pointers& others, int64_t count, const Options& options,
                   float* factors) {
  if (options.gaussian) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const float overlap = tftoolkit::Overlap(box, others, i);
      const float power = tftoolkit::Exp(-(overlap * overlap) * options.inverse_sigma);
      factors[i] = overlap > 0.0f ? power : 1.0f;  // where there is no area, the overlap is no number
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const float overlap = tftoolkit::Overlap(box, others, i);
      factors[i] = overlap > options.iou_threshold ? 1.0f - overlap : 1.0f;
    }
  }
}

// One set of n boxes. `classes` is null where all have the same.
template <typename T, typename I>
void Suppress(const T* boxes, const T* scores, const I* classes, int64_t n, const Options& options, int32_t* indices,
              float* kept_scores, int32_t* count) {
  struct Candidate {
    int64_t index;
    float score;
    I own;
  };
  std::vector<Candidate> left;
  for (int64_t i = 0; i < n; ++i) {
    const float score = tftoolkit::Load(scores[i]);
    if (score > options.score_threshold && !tftoolkit::HasNan(tftoolkit::LoadBox(boxes + 4 * i))) {
      left.push_back({i, score, classes == nullptr ? I{0} : classes[i]});
    }
  }
  int64_t size = static_cast<int64_t>(left.size()), found = 0;
  BoxArrays arrays(size);
  for (int64_t i = 0; i < size; ++i) arrays.Set(i, tftoolkit::LoadBox(boxes + 4 * left[i].index));
  std::vector<float> factors(size);
  // Of equal scores the first: `left` stays in the order of the indices.
  const auto higher = [](const Candidate& a, const Candidate& b) { return a.score < b.score; };
  while (size > 0 && found < options.max_output) {
    const Candidate best = *std::max_element(left.begin(), left.begin() + size, higher);
    indices[found] = static_cast<int32_t>(best.index);
    kept_scores[found++] = best.score;
    const Box box = tftoolkit::LoadBox(boxes + 4 * best.index);
    Decay(box, arrays.From(0), size, options, factors.data());
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {
      Candidate one = left[i];
      if (one.index == best.index) continue;
      if (one.own == best.own) one.score *= factors[i];
      if (!(one.score > options.score_threshold)) continue;
      if (kept < i) arrays.Move(i, kept);
      left[kept++] = one;
    }
    size = kept;
  }
  std::fill(indices + found, indices + options.max_output, -1);
  std::fill(kept_scores + found, kept_scores + options.max_output, 0.0f);
  *count = static_cast<int32_t>(found);
}

ffi::Error SoftNms(ffi::ThreadPool pool, ffi::AnyBuffer boxes, ffi::AnyBuffer scores, ffi::AnyBuffer classes,
                   Result indices, Result kept_scores, Result count, bool gaussian, bool has_classes,
                   float iou_threshold, int64_t max_output, float score_threshold, float sigma) {
  if (!(iou_threshold >= 0) || !(sigma > 0)) {
    return ffi::Error::InvalidArgument("iou_threshold must be at least 0 and sigma positive, but are " +
                                       std::to_string(iou_threshold) + " and " + std::to_string(sigma));
  }
  const int64_t n = scores.dimensions().back(), sets = static_cast<int64_t>(count->element_count());
  if (n > std::numeric_limits<int32_t>::max()) {
    return ffi::Error::InvalidArgument("there may be 2^31 - 1 boxes, but are " + std::to_string(n));
  }
  const Options options{iou_threshold, 1.0f / sigma, score_threshold, gaussian, max_output};
  return tftoolkit::WithFloatType("SoftNms", boxes.element_type(), [&](auto type) {
    return tftoolkit::WithIntegerType("SoftNms", classes.element_type(), [&](auto integer) {
      using T = decltype(type);
      using I = decltype(integer);
      const I* own = has_classes ? Data<I>(classes) : nullptr;
      tftoolkit::ParallelFor(pool, sets, [&](int64_t set) {
        Suppress(Data<T>(boxes) + 4 * n * set, Data<T>(scores) + n * set, own ? own + n * set : nullptr, n, options,
                 Data<int32_t>(indices) + max_output * set, Data<float>(kept_scores) + max_output * set,
                 Data<int32_t>(count) + set);
      });
      return ffi::Error::Success();
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(SoftNmsCpu, SoftNms,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("gaussian")
                           .Attr<bool>("has_classes")
                           .Attr<float>("iou_threshold")
                           .Attr<int64_t>("max_output")
                           .Attr<float>("score_threshold")
                           .Attr<float>("sigma"));

TK_OP(SoftNms,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(boxes: T[... n 4], scores: T[... n], classes?: I[... n], *, gaussian: bool, iou_threshold: f32, sigma: f32,"
      " score_threshold: f32, max_output: i64)"
      " -> (indices: i32[... max_output], scores_kept: f32[... max_output], count: i32[...]) batchable");
TK_KERNEL(SoftNms, CPU, SoftNmsCpu);
