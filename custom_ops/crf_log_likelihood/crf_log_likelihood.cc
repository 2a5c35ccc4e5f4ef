// Linear-chain CRFs on the CPU (Lafferty et al. 2001): the log-likelihood of tags, its gradient, and marginals. With
// logits x, transitions A from i to j, scores s of the first state and e of the last:
//
//   score(y) = s_y0 + sum_t x_t,yt + sum_t A_y(t-1),yt + e_y(T-1)     log Z = log sum over all paths of e^score
//   log-likelihood = score(tags) - log Z
//   dx_t,k = [k = tag_t] - P(y_t = k)          dA_ij = number of i, j in tags - sum_t P(y_t-1 = i, y_t = j)
//
// alpha_t,j = x_t,j + log sum_i e^(alpha_t-1,i + A_ij) needs no exponential for each pair: with p = e^(alpha - its
// largest) and E_ij = e^(A_ij - c_j), c_j the largest of column j, it is x_t,j + c_j + log sum_i p_i E_ij, a product
// with a matrix that is made once. A step costs states^2 multiplications and as many exponentials and logarithms as
// there are states. What p or E flush to 0 can be felt only in a sum that is small itself; below 1e-280 it is computed
// anew from the logarithms. Going back, marginal_t-1,i = p_i sum_j E_ij marginal_t,j / sum_t,j: the same
// product turned round, and states^2 more multiplications for the pairs; alpha is computed again, so that forward keeps
// nothing. All of a step lies in the first cache; the floor is arithmetic, states^2 a step forward and 3 states^2 back.
//
// A sequence is one thread's. Gradients of transitions are added up within tasks of sequences, and those in task order;
// tasks are cut by the batch and the states alone, so results do not depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "chain.h"
#include "tftoolkit/parallel.h"

namespace {

using tftoolkit::Data;
using tftoolkit::Load;
using tftoolkit::Store;
using tftoolkit::crf::Chain;
using tftoolkit::crf::kInfinity;
using tftoolkit::crf::Powers;
using tftoolkit::crf::Problem;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace crf = tftoolkit::crf;

thread_local std::vector<double> scratch;

// Steps of recursion, in multiplications.
constexpr int64_t kPerTask = 1 << 18;

int64_t SequencesPerTask(const Problem& p) {
  return std::max<int64_t>(1, kPerTask / std::max<int64_t>(1, p.time * p.states * p.states));
}

template <typename T>
double Score(const Problem& p, const T* logits, const int64_t* tags, int64_t length) {
  double score = static_cast<double>(p.StartOf(tags[0])) + p.EndOf(tags[length - 1]);
  for (int64_t t = 0; t < length; ++t) {
    score += Load(logits[t * p.states + tags[t]]);
    if (t > 0) score += p.transitions[tags[t - 1] * p.states + tags[t]];
  }
  return score;
}

ffi::Error CrfLogLikelihood(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer given, ffi::AnyBuffer lengths,
                            ffi::AnyBuffer transitions, ffi::AnyBuffer start, ffi::AnyBuffer end, Result y,
                            bool has_end, bool has_start) {
  Problem p;
  std::vector<int64_t> tags;
  const char* name = "CrfLogLikelihood";
  ffi::Error error =
      crf::ReadProblem(name, logits, lengths, transitions, has_start ? &start : nullptr, has_end ? &end : nullptr, p);
  if (error.success()) error = crf::ReadTags(name, given, p, tags);
  if (error.failure()) return error;
  const Powers powers(p);
  return tftoolkit::WithFloatType(name, logits.element_type(), [&](auto type) {
    using T = decltype(type);
    tftoolkit::ParallelRanges(pool, p.batch, SequencesPerTask(p), [&](int64_t begin, int64_t count) {
      Chain chain(p, powers, scratch, /*keeps=*/false);
      for (int64_t b = begin; b < begin + count; ++b) {
        const T* x = Data<T>(logits) + b * p.time * p.states;
        double found = 0;
        if (p.lengths[b] > 0) {
          const double log_z = chain.Forward(x, p.lengths[b]);
          found = log_z == -kInfinity ? -kInfinity : Score(p, x, tags.data() + b * p.time, p.lengths[b]) - log_z;
        }
        Data<float>(y)[b] = static_cast<float>(found);
      }
    });
    return ffi::Error::Success();
  });
}

// Of some sequences: gradients of the transitions, [states, width], of start and of end.
struct Partial {
  std::vector<double> pairs, direct, start, end;

  explicit Partial(const Powers& powers)
      : pairs(powers.power.size()), direct(powers.power.size()), start(powers.states), end(powers.states) {}

  // Of one sequence, whose probabilities are weighted with -scale.
  template <typename T>
  void Add(const Problem& p, Chain& chain, const int64_t* tags, int64_t length, double scale, T* dlogits) {
    const int64_t width = crf::Padded(p.states);
    chain.Backward(length, -scale, pairs.data(), direct.data(), [&](int64_t t, const double* marginal) {
      T* row = dlogits + t * p.states;
      crf::WriteRow(marginal, row, p.states);
      row[tags[t]] = Store<T>(static_cast<float>(marginal[tags[t]] + scale));
      if (t > 0) direct[tags[t - 1] * width + tags[t]] += scale;
      if (t == 0) AddState(marginal, tags[t], scale, start);
      if (t == length - 1) AddState(marginal, tags[t], scale, end);
    });
  }

 private:
  static void AddState(const double* marginal, int64_t tag, double scale, std::vector<double>& sum) {
    for (size_t k = 0; k < sum.size(); ++k) sum[k] += marginal[k];
    sum[tag] += scale;
  }
};

// Of all sequences, in the order of their tasks.
void AddUp(const Powers& powers, const std::vector<Partial>& parts, float* dtransitions, float* dstart, float* dend) {
  const int64_t states = powers.states;
  for (int64_t i = 0; i < states; ++i) {
    double start = 0, end = 0;
    for (const Partial& part : parts) start += part.start[i], end += part.end[i];
    dstart[i] = static_cast<float>(start), dend[i] = static_cast<float>(end);
    for (int64_t j = 0; j < states; ++j) {
      const int64_t place = i * powers.width + j;
      double sum = 0;
      for (const Partial& part : parts) {
        sum += part.pairs[place] * powers.power[place] + part.direct[place];
      }
      dtransitions[i * states + j] = static_cast<float>(sum);
    }
  }
}

ffi::Error CrfLogLikelihoodGrad(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer given,
                                ffi::AnyBuffer lengths, ffi::AnyBuffer transitions, ffi::AnyBuffer start,
                                ffi::AnyBuffer end, ffi::AnyBuffer dy, Result dlogits, Result dtransitions,
                                Result dstart, Result dend, bool has_end, bool has_start) {
  Problem p;
  std::vector<int64_t> tags;
  const char* name = "CrfLogLikelihoodGrad";
  ffi::Error error =
      crf::ReadProblem(name, logits, lengths, transitions, has_start ? &start : nullptr, has_end ? &end : nullptr, p);
  if (error.success()) error = crf::ReadTags(name, given, p, tags);
  if (error.failure()) return error;
  const Powers powers(p);
  constexpr int64_t kMostParts = 16;  // each holds two matrices
  const int64_t each = std::max(SequencesPerTask(p), (p.batch + kMostParts - 1) / kMostParts);
  std::vector<Partial> parts((p.batch + each - 1) / each, Partial(powers));
  return tftoolkit::WithFloatType(name, logits.element_type(), [&](auto type) {
    using T = decltype(type);
    tftoolkit::ParallelRanges(pool, p.batch, each, [&](int64_t begin, int64_t count) {
      Chain chain(p, powers, scratch, /*keeps=*/true);
      for (int64_t b = begin; b < begin + count; ++b) {
        const int64_t place = b * p.time * p.states, length = p.lengths[b];
        const T* x = Data<T>(logits) + place;
        T* dx = Data<T>(dlogits) + place;
        std::fill_n(dx, p.time * p.states, Store<T>(0));
        if (length == 0 || chain.Forward(x, length) == -kInfinity) continue;  // no path: nothing moves that
        parts[begin / each].Add(p, chain, tags.data() + b * p.time, length, Data<float>(dy)[b], dx);
      }
    });
    AddUp(powers, parts, Data<float>(dtransitions), Data<float>(dstart), Data<float>(dend));
    return ffi::Error::Success();
  });
}

ffi::Error CrfMarginals(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer lengths, ffi::AnyBuffer transitions,
                        ffi::AnyBuffer start, ffi::AnyBuffer end, Result marginals, bool has_end, bool has_start) {
  Problem p;
  const char* name = "CrfMarginals";
  ffi::Error error =
      crf::ReadProblem(name, logits, lengths, transitions, has_start ? &start : nullptr, has_end ? &end : nullptr, p);
  if (error.failure()) return error;
  const Powers powers(p);
  return tftoolkit::WithFloatType(name, logits.element_type(), [&](auto type) {
    using T = decltype(type);
    tftoolkit::ParallelRanges(pool, p.batch, SequencesPerTask(p), [&](int64_t begin, int64_t count) {
      Chain chain(p, powers, scratch, /*keeps=*/true);
      for (int64_t b = begin; b < begin + count; ++b) {
        const int64_t place = b * p.time * p.states, length = p.lengths[b];
        float* y = Data<float>(marginals) + place;
        std::fill_n(y, p.time * p.states, 0.0f);
        if (length == 0 || chain.Forward(Data<T>(logits) + place, length) == -kInfinity) continue;
        chain.Backward(length, 1, nullptr, nullptr,
                       [&](int64_t t, const double* marginal) { crf::WriteRow(marginal, y + t * p.states, p.states); });
      }
    });
    return ffi::Error::Success();
  });
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()
#define TK_ENDS .Attr<bool>("has_end").Attr<bool>("has_start")

XLA_FFI_DEFINE_HANDLER(CrfLogLikelihoodCpu, CrfLogLikelihood,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_ENDS);
XLA_FFI_DEFINE_HANDLER(CrfLogLikelihoodGradCpu, CrfLogLikelihoodGrad,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
                           TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT TK_ENDS);
XLA_FFI_DEFINE_HANDLER(CrfMarginalsCpu, CrfMarginals,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_ENDS);

#define TK_TRANSITIONS "transitions: f32[states states], start?: f32[states], end?: f32[states]"

TK_OP(CrfLogLikelihood,
      "<T: f32 | bf16 | f16, I: i32 | i64, L: i32 | i64>"
      "(logits: T[batch time states], tags: I[batch time], lengths: L[batch], " TK_TRANSITIONS ") -> (y: f32[batch])");
TK_OP(CrfLogLikelihoodGrad,
      "<T: f32 | bf16 | f16, I: i32 | i64, L: i32 | i64>"
      "(logits: T[batch time states], tags: I[batch time], lengths: L[batch], " TK_TRANSITIONS
      ", dy: f32[batch])"
      " -> (dlogits: T[batch time states], dtransitions: f32[states states], dstart: f32[states], dend: f32[states])");
TK_OP(CrfMarginals,
      "<T: f32 | bf16 | f16, L: i32 | i64>(logits: T[batch time states], lengths: L[batch], " TK_TRANSITIONS
      ") -> (marginals: f32[batch time states])");
TK_KERNEL(CrfLogLikelihood, CPU, CrfLogLikelihoodCpu);
TK_KERNEL(CrfLogLikelihoodGrad, CPU, CrfLogLikelihoodGradCpu);
TK_KERNEL(CrfMarginals, CPU, CrfMarginalsCpu);
