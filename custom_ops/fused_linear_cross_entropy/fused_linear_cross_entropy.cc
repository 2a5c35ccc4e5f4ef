// Cross-entropy of softmax(inputs weight^T + bias) with whole labels, and its gradients, on the CPU, without a buffer
// of all logits. Per token with label l, class weights w, smoothing s over V classes and z-loss z, in float32:
//
//   x = inputs weight^T + bias    x <- softcap * tanh(x / softcap)    lse = log sum(e^x)
//   loss = (1 - s) w_l (lse - x_l) + s / V * sum_c w_c (lse - x_c) + z lse^2
//   dx_c = e^(x_c - lse) (d_loss ((1 - s) w_l + s / V sum(w) + 2 z lse) + d_lse) - d_loss (s / V w_c + (1 - s) w_l [c =
//   l])
//
// The floor is arithmetic: 2 N V D operations for the losses, 6 N V D with gradients. Chunks of 128 tokens are taken
// one after the other; of one the logits are kept from the first product to the two others, V * 128 floats, so the
// weight and its gradient pass through memory a few times per chunk: 16 V D bytes for 768 V D operations. Tokens
// whose label is ignored are left out before anything is computed.
//
// token.h: the maths of a token. problem.h: what is asked for. kernels.h: the passes over tiles of the logits. tasks.h:
// who does which tiles.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "problem.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/isa.h"
#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/scratch.h"

namespace {

using namespace tftoolkit::linear_cross_entropy;
using tftoolkit::Data;
using tftoolkit::Isa;
using Result = ffi::Result<ffi::AnyBuffer>;

#define TK_LANES 4
namespace baseline {
#include "tftoolkit/gemm.h"
//
#include "tftoolkit/packing.h"
//
#include "tftoolkit/operands.h"
//
#include "tftoolkit/vector_math.h"
//
#include "kernels.h"
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
#include "tftoolkit/operands.h"
//
#include "tftoolkit/vector_math.h"
//
#include "kernels.h"
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
#include "tftoolkit/operands.h"
//
#include "tftoolkit/vector_math.h"
//
#include "kernels.h"
//
#include "tasks.h"
}  // namespace avx512
#undef TK_LANES
#pragma GCC pop_options
#endif

// Whether products of pairs are to be used, of the code for AVX-512.
bool Pairs(const Problem& p) { return p.type == tftoolkit::FloatType::kBFloat16 && tftoolkit::HasBf16Products(); }

void Forward(ffi::ThreadPool& pool, const Problem& p, const Losses& losses) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) {
    return Pairs(p) ? avx512::Forward<avx512::Pair>(pool, p, losses) : avx512::Forward<float>(pool, p, losses);
  }
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Forward<float>(pool, p, losses);
#endif
  baseline::Forward<float>(pool, p, losses);
}

void Backward(ffi::ThreadPool& pool, const Problem& p, Gradients& g) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) {
    return Pairs(p) ? avx512::Backward<avx512::Pair>(pool, p, g) : avx512::Backward<float>(pool, p, g);
  }
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Backward<float>(pool, p, g);
#endif
  baseline::Backward<float>(pool, p, g);
}

struct Settings {
  int64_t ignore_index;
  float label_smoothing, logit_softcap, z_loss;
};

// The tokens that count, or an error that names a label that is no class.
ffi::Error FindTokens(const ffi::AnyBuffer& labels, int64_t ignore_index, Problem& p) {
  return tftoolkit::WithIntegerType("FusedLinearCrossEntropy", labels.element_type(), [&](auto type) {
    const auto* from = Data<decltype(type)>(labels);
    for (int64_t row = 0; row < p.rows; ++row) {
      const int64_t label = from[row];
      if (label == ignore_index) continue;
      if (label < 0 || label >= p.classes) {
        return BadLabel(row, label, p.classes, ignore_index);
      }
      p.tokens.push_back({row, label});
    }
    return ffi::Error::Success();
  });
}

ffi::Error MakeProblem(const ffi::AnyBuffer& inputs, const ffi::AnyBuffer& weight, const ffi::AnyBuffer* bias,
                       const ffi::AnyBuffer& labels, const ffi::AnyBuffer* class_weight, const Settings& s,
                       Problem& p) {
  const ffi::DataType dtype = inputs.element_type();
  using Type = tftoolkit::FloatType;
  p.type = dtype == ffi::F32 ? Type::kFloat : dtype == ffi::BF16 ? Type::kBFloat16 : Type::kHalf;
  p.inputs = inputs.untyped_data();
  p.weight = weight.untyped_data();
  p.bias = bias == nullptr ? nullptr : bias->untyped_data();
  p.class_weight = class_weight == nullptr ? nullptr : Data<float>(*class_weight);
  p.rows = static_cast<int64_t>(labels.element_count());
  p.depth = weight.dimensions()[1];
  p.classes = weight.dimensions()[0];
  p.smoothing = s.label_smoothing;
  p.z_loss = s.z_loss;
  p.softcap = s.logit_softcap;
  p.weight_sum = p.WeightSum(0, p.classes);
  return FindTokens(labels, s.ignore_index, p);
}

// The sum of the class weights of the labels that count; 1 where it is 0, so that a mean of nothing is 0.
double TotalWeight(const Problem& p) {
  double sum = 0;
  for (const Token& token : p.tokens) sum += p.ClassWeight(token.label);
  return sum == 0 ? 1 : sum;
}

ffi::Error FusedLinearCrossEntropy(ffi::ThreadPool pool, ffi::AnyBuffer inputs, ffi::AnyBuffer weight,
                                   ffi::AnyBuffer bias, ffi::AnyBuffer labels, ffi::AnyBuffer class_weight, Result loss,
                                   Result lse, Result total, Result total_weight, bool has_bias, bool has_class_weight,
                                   int64_t ignore_index, float label_smoothing, float logit_softcap, float z_loss) {
  Problem p;
  if (ffi::Error error =
          MakeProblem(inputs, weight, has_bias ? &bias : nullptr, labels, has_class_weight ? &class_weight : nullptr,
                      {ignore_index, label_smoothing, logit_softcap, z_loss}, p);
      error.failure()) {
    return error;
  }
  Forward(pool, p, {Data<float>(loss), Data<float>(lse)});
  double sum = 0;
  for (const Token& token : p.tokens) sum += Data<float>(loss)[token.row];
  *Data<float>(total) = static_cast<float>(sum);
  *Data<float>(total_weight) = static_cast<float>(TotalWeight(p));
  return ffi::Error::Success();
}

ffi::Error FusedLinearCrossEntropyGrad(ffi::ThreadPool pool, ffi::AnyBuffer inputs, ffi::AnyBuffer weight,
                                       ffi::AnyBuffer bias, ffi::AnyBuffer labels, ffi::AnyBuffer class_weight,
                                       ffi::AnyBuffer d_loss, ffi::AnyBuffer d_lse, Result dinputs, Result dweight,
                                       Result dbias, Result total, bool biased, bool has_class_weight, bool has_dbias,
                                       int64_t ignore_index, float label_smoothing, float logit_softcap, bool mean,
                                       float z_loss) {
  if (ffi::Error wrong = CheckBias(biased, has_dbias, bias, weight); wrong.failure()) return wrong;
  Problem p;
  if (ffi::Error error =
          MakeProblem(inputs, weight, biased ? &bias : nullptr, labels, has_class_weight ? &class_weight : nullptr,
                      {ignore_index, label_smoothing, logit_softcap, z_loss}, p);
      error.failure()) {
    return error;
  }
  Gradients gradients{Data<float>(d_loss),
                      mean ? 1 / TotalWeight(p) : 1,
                      Data<float>(d_lse),
                      dinputs->untyped_data(),
                      dweight->untyped_data(),
                      has_dbias ? dbias->untyped_data() : nullptr,
                      0};
  Backward(pool, p, gradients);
  *Data<float>(total) = static_cast<float>(gradients.total);
  return ffi::Error::Success();
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

XLA_FFI_DEFINE_HANDLER(FusedLinearCrossEntropyCpu, FusedLinearCrossEntropy,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT.Attr<bool>("has_bias")
                           .Attr<bool>("has_class_weight")
                           .Attr<int64_t>("ignore_index")
                           .Attr<float>("label_smoothing")
                           .Attr<float>("logit_softcap")
                           .Attr<float>("z_loss"));

XLA_FFI_DEFINE_HANDLER(FusedLinearCrossEntropyGradCpu, FusedLinearCrossEntropyGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT
                           .Attr<bool>("biased")
                           .Attr<bool>("has_class_weight")
                           .Attr<bool>("has_dbias")
                           .Attr<int64_t>("ignore_index")
                           .Attr<float>("label_smoothing")
                           .Attr<float>("logit_softcap")
                           .Attr<bool>("mean")
                           .Attr<float>("z_loss"));

#define TK_SETTINGS "ignore_index: i64 = -100, label_smoothing: f32 = 0.0, z_loss: f32 = 0.0, logit_softcap: f32 = 0.0"

// total: the sum of the losses; total_weight: that of the class weights of the labels that count, 1 where it is 0.
TK_OP(FusedLinearCrossEntropy,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(inputs: T[... depth], weight: T[classes depth], bias?: T[classes], labels: I[...],"
      " class_weight?: f32[classes], *, " TK_SETTINGS
      ") -> (loss: f32[...], lse: f32[...], total: f32[], total_weight: f32[])");
// `biased`: the bias counts. It is no optional input, since the shape of an output follows from it. `mean`: d_loss is
// first divided by total_weight. total: the sum of d_loss times the losses.
TK_OP(FusedLinearCrossEntropyGrad,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(inputs: T[... depth], weight: T[classes depth], bias: T[biases], labels: I[...], class_weight?: f32[classes],"
      " d_loss: f32[...], d_lse: f32[...], *, biased: bool, mean: bool = False, " TK_SETTINGS
      ") -> (dinputs: T[... depth], dweight: T[classes depth], dbias?: T[biases], total: f32[])");
TK_KERNEL(FusedLinearCrossEntropy, CPU, FusedLinearCrossEntropyCpu);
TK_KERNEL(FusedLinearCrossEntropyGrad, CPU, FusedLinearCrossEntropyGradCpu);
