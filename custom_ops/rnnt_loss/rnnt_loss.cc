// The transducer's loss with the softmax in it, and its gradient, on the CPU (Graves 2012): of a joint tensor of
// logits, and of sums of an encoder's and a predictor's logits, without their joint tensor.
//
// Cell (t, u) is frame t behind u labels. With y(t, u) = softmax(logits[t, u]), blank(t, u) = y(t, u)[blank] and
// label(t, u) = y(t, u)[label u], the loss is -log of the sum over all ways from (0, 0) through the last frame and the
// last label of the product of what they use (lattice.h). With b(t, u) and l(t, u), how likely a way uses a blank or a
// label there, and lambda of FastEmit (Yu et al. 2021), w = 1 + lambda,
//
//   dx_c = d_loss (y_c (b + w l) - [c = blank] b - [c = label u] w l)
//
// The floor of a joint tensor: forward reads it once, backward reads it and writes as much, and each takes an
// exponential per logit, which binds few cores where memory does not. Its gradient is all there is beside it of that
// size. Of sums: 2 T (U + 1) V operations forward and 4 T (U + 1) V backward, in products of matrices, an eighth of
// what as many exponentials cost, and (T + U) V of these in each direction. Cells are V times fewer in both: their
// logarithms, sums over ways and likelihoods take some 100 vector instructions for 4, 8 or 16 cells.
//
// problem.h: what is asked for. joint.h, additive.h: the passes.

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
#include "tftoolkit/math.h"
#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/scratch.h"
#include "tftoolkit/softmax_part.h"

namespace {

using tftoolkit::Data;
using tftoolkit::Isa;
using tftoolkit::rnnt::MakeProblem;
using tftoolkit::rnnt::Problem;
using tftoolkit::rnnt::Sequence;
using Result = ffi::Result<ffi::AnyBuffer>;

// Shifts and sums of each cell are results of the losses and given to the gradients.
struct JointLoss {
  const void* logits;
  float *shifts, *sums, *losses;
};

struct JointGradient {
  const void* logits;
  const float *shifts, *sums, *d_loss, *d_sum;
  void* dlogits;
};

struct AdditiveLoss {
  const void *encoder, *predictor;
  float *log_sums, *losses;
};

struct AdditiveGradient {
  const void *encoder, *predictor;
  const float *log_sums, *d_loss, *d_log_sum;
  void *d_encoder, *d_predictor;
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
#include "lattice.h"
//
#include "joint.h"
//
#include "additive.h"
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
#include "lattice.h"
//
#include "joint.h"
//
#include "additive.h"
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
#include "lattice.h"
//
#include "joint.h"
//
#include "additive.h"
}  // namespace avx512
#undef TK_LANES
#pragma GCC pop_options
#endif

void Losses(ffi::ThreadPool& pool, const Problem& p, const JointLoss& call) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) return avx512::Losses(pool, p, call);
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Losses(pool, p, call);
#endif
  baseline::Losses(pool, p, call);
}

void Gradients(ffi::ThreadPool& pool, const Problem& p, const JointGradient& call) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) return avx512::Gradients(pool, p, call);
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Gradients(pool, p, call);
#endif
  baseline::Gradients(pool, p, call);
}

void Losses(ffi::ThreadPool& pool, const Problem& p, const AdditiveLoss& call) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) return avx512::Losses(pool, p, call);
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Losses(pool, p, call);
#endif
  baseline::Losses(pool, p, call);
}

void Gradients(ffi::ThreadPool& pool, const Problem& p, const AdditiveGradient& call) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) return avx512::Gradients(pool, p, call);
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Gradients(pool, p, call);
#endif
  baseline::Gradients(pool, p, call);
}

ffi::Error RnntLoss(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer labels, ffi::AnyBuffer logit_lengths,
                    ffi::AnyBuffer label_lengths, Result loss, Result max, Result sum, int64_t blank, float fastemit) {
  Problem p;
  std::string wrong = MakeProblem(logits, "logits", labels, logit_lengths, label_lengths, blank, fastemit, p);
  if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  Losses(pool, p, JointLoss{logits.untyped_data(), Data<float>(max), Data<float>(sum), Data<float>(loss)});
  return ffi::Error::Success();
}

ffi::Error RnntLossGrad(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer labels,
                        ffi::AnyBuffer logit_lengths, ffi::AnyBuffer label_lengths, ffi::AnyBuffer d_loss,
                        ffi::AnyBuffer d_sum, ffi::AnyBuffer max, ffi::AnyBuffer sum, Result dlogits, int64_t blank,
                        float fastemit) {
  Problem p;
  std::string wrong = MakeProblem(logits, "logits", labels, logit_lengths, label_lengths, blank, fastemit, p);
  if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  Gradients(pool, p,
            JointGradient{logits.untyped_data(), Data<float>(max), Data<float>(sum), Data<float>(d_loss),
                          Data<float>(d_sum), dlogits->untyped_data()});
  return ffi::Error::Success();
}

ffi::Error RnntLossAdditive(ffi::ThreadPool pool, ffi::AnyBuffer encoder, ffi::AnyBuffer predictor,
                            ffi::AnyBuffer labels, ffi::AnyBuffer logit_lengths, ffi::AnyBuffer label_lengths,
                            Result loss, Result log_sum, int64_t blank, float fastemit) {
  Problem p;
  std::string wrong = MakeProblem(encoder, "encoder", labels, logit_lengths, label_lengths, blank, fastemit, p);
  if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  Losses(pool, p,
         AdditiveLoss{encoder.untyped_data(), predictor.untyped_data(), Data<float>(log_sum), Data<float>(loss)});
  return ffi::Error::Success();
}

ffi::Error RnntLossAdditiveGrad(ffi::ThreadPool pool, ffi::AnyBuffer encoder, ffi::AnyBuffer predictor,
                                ffi::AnyBuffer labels, ffi::AnyBuffer logit_lengths, ffi::AnyBuffer label_lengths,
                                ffi::AnyBuffer d_loss, ffi::AnyBuffer d_log_sum, ffi::AnyBuffer log_sum,
                                Result d_encoder, Result d_predictor, int64_t blank, float fastemit) {
  Problem p;
  std::string wrong = MakeProblem(encoder, "encoder", labels, logit_lengths, label_lengths, blank, fastemit, p);
  if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  Gradients(
      pool, p,
      AdditiveGradient{encoder.untyped_data(), predictor.untyped_data(), Data<float>(log_sum), Data<float>(d_loss),
                       Data<float>(d_log_sum), d_encoder->untyped_data(), d_predictor->untyped_data()});
  return ffi::Error::Success();
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()
#define TK_SETTINGS .Attr<int64_t>("blank").Attr<float>("fastemit")

XLA_FFI_DEFINE_HANDLER(RnntLossCpu, RnntLoss,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
                           TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_SETTINGS);
XLA_FFI_DEFINE_HANDLER(RnntLossGradCpu, RnntLossGrad,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
                           TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_SETTINGS);
XLA_FFI_DEFINE_HANDLER(RnntLossAdditiveCpu, RnntLossAdditive,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_SETTINGS);
XLA_FFI_DEFINE_HANDLER(RnntLossAdditiveGradCpu, RnntLossAdditiveGrad,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
                           TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_SETTINGS);

#define TK_TYPES "<T: f32 | bf16 | f16, I: i32 | i64, J: i32 | i64, K: i32 | i64>"
#define TK_LABELS "labels: I[batch labels], logit_lengths: J[batch], label_lengths: K[batch]"
#define TK_OPTIONS "*, blank: i64 = 0, fastemit: f32 = 0.0"

TK_OP(RnntLoss, TK_TYPES "(logits: T[batch time labels+1 classes], " TK_LABELS ", " TK_OPTIONS
                         ") -> (loss: f32[batch], max: f32[batch time labels+1], sum: f32[batch time labels+1])");
TK_OP(RnntLossGrad,
      TK_TYPES "(logits: T[batch time labels+1 classes], " TK_LABELS
               ", d_loss: f32[batch], d_sum: f32[batch time labels+1], max: f32[batch time labels+1],"
               " sum: f32[batch time labels+1], " TK_OPTIONS ") -> (dlogits: T[batch time labels+1 classes])");
TK_OP(RnntLossAdditive, TK_TYPES "(encoder: T[batch time classes], predictor: T[batch labels+1 classes], " TK_LABELS
                                 ", " TK_OPTIONS ") -> (loss: f32[batch], log_sum: f32[batch time labels+1])");
TK_OP(RnntLossAdditiveGrad, TK_TYPES
      "(encoder: T[batch time classes], predictor: T[batch labels+1 classes], " TK_LABELS
      ", d_loss: f32[batch], d_log_sum: f32[batch time labels+1], log_sum: f32[batch time labels+1], " TK_OPTIONS
      ") -> (d_encoder: T[batch time classes], d_predictor: T[batch labels+1 classes])");
TK_KERNEL(RnntLoss, CPU, RnntLossCpu);
TK_KERNEL(RnntLossGrad, CPU, RnntLossGradCpu);
TK_KERNEL(RnntLossAdditive, CPU, RnntLossAdditiveCpu);
TK_KERNEL(RnntLossAdditiveGrad, CPU, RnntLossAdditiveGradCpu);
