// The best path through a linear-chain CRF (Viterbi 1967) on the CPU; crf_log_likelihood.cc says what a path's score
// is.
//
//   best_t,j = x_t,j + max_i (best_t-1,i + A_ij)
//
// states^2 additions and comparisons a step, all in the first cache. In double, so that the path is the best one
// also of long sequences; the scores of a step are kept near 0.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "loops.h"
#include "problem.h"
#include "tftoolkit/parallel.h"

namespace {

using tftoolkit::Data;
using tftoolkit::Load;
using tftoolkit::crf::Problem;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace crf = tftoolkit::crf;

struct Viterbi {
  const Problem& p;
  int64_t width = crf::Padded(p.states);
  std::vector<double> score = std::vector<double>(width), best = std::vector<double>(width);
  std::vector<double> logits = std::vector<double>(width);
  std::vector<int64_t> from = std::vector<int64_t>(p.time * width);  // as wide as the scores: one loop for both

  template <typename T>
  float Decode(const T* x, const double* transitions, int64_t length, int32_t* path) {
    crf::ReadRow(x, score.data(), p.states);
    for (int64_t j = 0; j < p.states; ++j) score[j] += p.StartOf(j);
    for (int64_t t = 1; t < length; ++t) {
      crf::BestStep(score.data(), transitions, best.data(), from.data() + t * width, p.states, width);
      crf::ReadRow(x + t * p.states, logits.data(), p.states);
      const double largest = crf::Largest(best.data(), p.states);
      const double shift = largest - largest == 0 ? largest : 0;  // none where nothing is finite
      for (int64_t j = 0; j < p.states; ++j) score[j] = logits[j] + (best[j] - shift);
    }
    int32_t state = 0;
    for (int64_t j = 0; j < p.states; ++j) {
      score[j] += p.EndOf(j);
      if (score[j] > score[state] || (score[j] != score[j] && score[state] == score[state])) state = j;
    }
    double total = p.EndOf(state);
    for (int64_t t = length - 1; t >= 0; --t) {
      path[t] = state;
      total += Load(x[t * p.states + state]);
      if (t == 0) break;
      const auto before = static_cast<int32_t>(from[t * width + state]);
      total += p.transitions[before * p.states + state];
      state = before;
    }
    return static_cast<float>(total + p.StartOf(state));
  }
};

ffi::Error CrfDecode(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer lengths, ffi::AnyBuffer transitions,
                     ffi::AnyBuffer start, ffi::AnyBuffer end, Result tags, Result score, bool has_end,
                     bool has_start) {
  Problem p;
  const char* name = "CrfDecode";
  ffi::Error error =
      crf::ReadProblem(name, logits, lengths, transitions, has_start ? &start : nullptr, has_end ? &end : nullptr, p);
  if (error.failure()) return error;
  const int64_t width = crf::Padded(p.states);
  std::vector<double> wide(p.states * width);
  for (int64_t i = 0; i < p.states; ++i) std::copy_n(p.transitions + i * p.states, p.states, wide.data() + i * width);
  constexpr int64_t kPerTask = 1 << 18;  // comparisons
  const int64_t each = std::max<int64_t>(1, kPerTask / std::max<int64_t>(1, p.time * p.states * p.states));
  return tftoolkit::WithFloatType(name, logits.element_type(), [&](auto type) {
    using T = decltype(type);
    tftoolkit::ParallelRanges(pool, p.batch, each, [&](int64_t begin, int64_t count) {
      Viterbi viterbi{p};
      for (int64_t b = begin; b < begin + count; ++b) {
        int32_t* path = Data<int32_t>(tags) + b * p.time;
        const int64_t length = p.lengths[b];
        std::fill(path + length, path + p.time, -1);
        const T* x = Data<T>(logits) + b * p.time * p.states;
        Data<float>(score)[b] = length == 0 ? 0 : viterbi.Decode(x, wide.data(), length, path);
      }
    });
    return ffi::Error::Success();
  });
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

XLA_FFI_DEFINE_HANDLER(CrfDecodeCpu, CrfDecode,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT.Attr<bool>("has_end")
                           .Attr<bool>("has_start"));

TK_OP(CrfDecode,
      "<T: f32 | bf16 | f16, L: i32 | i64>"
      "(logits: T[batch time states], lengths: L[batch], transitions: f32[states states], start?: f32[states],"
      " end?: f32[states]) -> (tags: i32[batch time], score: f32[batch])");
TK_KERNEL(CrfDecode, CPU, CrfDecodeCpu);
