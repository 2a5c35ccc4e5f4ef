// Connectionist temporal classification with the softmax in it, and its gradient, on the CPU (Graves et al. 2006).
//
// With y(t, c) = softmax(logits[t])[c], labels l(0) … l(L-1) and a state for each label, and for the blanks before,
// between and behind them, alpha(t, s) is the sum over all ways to state s at frame t, beta(t, s) that over all from
// there on (states.h):
//
//   loss = -log sum over ways of the product of y = sum_t log sum_c e^(x_tc - max_t) - log (sum over ways of e^(x -
//   max)) dx(t, c) = d_loss (y(t, c) - sum of alpha(t, s) beta(t, s) / all over states s of class c)
//
// The second form of the loss needs no exponential of a class that is neither blank nor label. States are sums of
// products of any size (wide_numbers.h) and not logarithms: no exponential, no logarithm per state and step.
//
// The floor: forward reads T V logits and takes as many exponentials, backward reads them, writes as many numbers and
// takes as many exponentials: memory binds where there are many classes. Of 2 L + 1 states those count from which the
// end can be reached in time: pairs of blank and label from max(0, L - T + t) to min(L, t), at most T^2 / 4 and L T in
// all. A pair takes some 60 vector instructions a pass for 4, 8 or 16 of them. There are five passes: forward for the
// loss; in the gradient forward and backward, of which every 32nd row is kept, and both again block by block, where
// each block is a task, so that a single long sequence has work for many threads. All that is kept beside that is
// 2 T / 32 rows of states for each sequence.
//
// problem.h: what is asked for. tasks.h: the passes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "problem.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/isa.h"
#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/scratch.h"
#include "tftoolkit/softmax_part.h"

namespace {

using tftoolkit::Data;
using tftoolkit::Isa;
using tftoolkit::ctc::MakeProblem;
using tftoolkit::ctc::Problem;
using tftoolkit::ctc::Sequence;
using Result = ffi::Result<ffi::AnyBuffer>;

struct Gradients {
  const float *d_loss, *d_sum, *shifts, *sums;
  void* dlogits;
};

#define TK_LANES 4
namespace baseline {
#include "tftoolkit/gemm.h"
//
#include "tftoolkit/packing.h"
//
#include "tftoolkit/vector_math.h"
//
#include "tftoolkit/softmax_rows.h"
//
#include "tftoolkit/wide_numbers.h"
//
#include "states.h"
//
#include "tasks.h"
}  // namespace baseline
#undef TK_LANES

#ifdef TK_HAS_ISAS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TK_LANES 8
namespace avx2 {
#include "tftoolkit/gemm.h"
//
#include "tftoolkit/packing.h"
//
#include "tftoolkit/vector_math.h"
//
#include "tftoolkit/softmax_rows.h"
//
#include "tftoolkit/wide_numbers.h"
//
#include "states.h"
//
#include "tasks.h"
}  // namespace avx2
#undef TK_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define TK_LANES 16
namespace avx512 {
#include "tftoolkit/gemm.h"
//
#include "tftoolkit/packing.h"
//
#include "tftoolkit/vector_math.h"
//
#include "tftoolkit/softmax_rows.h"
//
#include "tftoolkit/wide_numbers.h"
//
#include "states.h"
//
#include "tasks.h"
}  // namespace avx512
#undef TK_LANES
#pragma GCC pop_options
#endif

void Losses(ffi::ThreadPool& pool, const Problem& p, bool zero_infinity, float* losses, float* shifts, float* sums) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) return avx512::Losses(pool, p, zero_infinity, losses, shifts, sums);
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Losses(pool, p, zero_infinity, losses, shifts, sums);
#endif
  baseline::Losses(pool, p, zero_infinity, losses, shifts, sums);
}

void LogitGradients(ffi::ThreadPool& pool, const Problem& p, const Gradients& g) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) return avx512::LogitGradients(pool, p, g);
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::LogitGradients(pool, p, g);
#endif
  baseline::LogitGradients(pool, p, g);
}

ffi::Error CtcLoss(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer labels, ffi::AnyBuffer logit_lengths,
                   ffi::AnyBuffer label_lengths, Result loss, Result max, Result sum, int64_t blank,
                   bool zero_infinity) {
  Problem p;
  if (std::string wrong = MakeProblem(logits, labels, logit_lengths, label_lengths, blank, p); !wrong.empty()) {
    return ffi::Error::InvalidArgument(wrong);
  }
  if (p.batch == 0) return ffi::Error::Success();
  Losses(pool, p, zero_infinity, Data<float>(loss), Data<float>(max), Data<float>(sum));
  return ffi::Error::Success();
}

ffi::Error CtcLossGrad(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer labels, ffi::AnyBuffer logit_lengths,
                       ffi::AnyBuffer label_lengths, ffi::AnyBuffer d_loss, ffi::AnyBuffer d_sum, ffi::AnyBuffer max,
                       ffi::AnyBuffer sum, Result dlogits, int64_t blank) {
  Problem p;
  if (std::string wrong = MakeProblem(logits, labels, logit_lengths, label_lengths, blank, p); !wrong.empty()) {
    return ffi::Error::InvalidArgument(wrong);
  }
  if (p.batch * p.time == 0) return ffi::Error::Success();
  LogitGradients(
      pool, p, {Data<float>(d_loss), Data<float>(d_sum), Data<float>(max), Data<float>(sum), dlogits->untyped_data()});
  return ffi::Error::Success();
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

XLA_FFI_DEFINE_HANDLER(CtcLossCpu, CtcLoss,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT.Attr<int64_t>("blank")
                           .Attr<bool>("zero_infinity"));

XLA_FFI_DEFINE_HANDLER(CtcLossGradCpu, CtcLossGrad,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
                           TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT.Attr<int64_t>("blank"));

TK_OP(CtcLoss,
      "<T: f32 | bf16 | f16, I: i32 | i64, J: i32 | i64, K: i32 | i64>"
      "(logits: T[batch time classes], labels: I[...], logit_lengths: J[batch], label_lengths: K[batch], *,"
      " blank: i64 = 0, zero_infinity: bool = False)"
      " -> (loss: f32[batch], max: f32[batch time], sum: f32[batch time])");
TK_OP(CtcLossGrad,
      "<T: f32 | bf16 | f16, I: i32 | i64, J: i32 | i64, K: i32 | i64>"
      "(logits: T[batch time classes], labels: I[...], logit_lengths: J[batch], label_lengths: K[batch],"
      " d_loss: f32[batch], d_sum: f32[batch time], max: f32[batch time], sum: f32[batch time], *, blank: i64 = 0)"
      " -> (dlogits: T[batch time classes])");
TK_KERNEL(CtcLoss, CPU, CtcLossCpu);
TK_KERNEL(CtcLossGrad, CPU, CtcLossGradCpu);
