// Attention without a buffer of scores, and its gradient, on the CPU (Dao et al. 2022, Dao 2023: FlashAttention 1, 2).
//
//   s = scale * q k^T      s <- softcap * tanh(s / softcap)      s <- s + bias      p = softmax(s)      o = p v
//
//   dp = do v^T    ds = p (dp - delta)    delta = sum(do * o) - dlse    dv = p^T do    dk = ds^T q    dq = ds k
//
// The floor is arithmetic: 4 queries * keys * depth operations forward (two products), 10 backward (five, one of which
// computes the scores again), half of it with a causal mask; at 512 queries and a depth of 64 that is some 60
// operations per byte of q, k, v and o. Scores of one tile live in the first-level cache. What the backward pass keeps
// of the forward pass is o, the largest score and 1 / sum of each query: from the log-sum-exp alone, at large scores, p
// would lose its digits. Scores are computed there bit for bit as in the forward pass.
//
// Of bfloat16, where the processor has AVX512-BF16, all products but their sums are of bfloat16 (gemm.h), at twice the
// rate: p and ds are rounded then. Everywhere else bfloat16 and float16 are loaded into float32 and computed in it.
//
// problem.h: what is asked for; sequences.h: what the tensors say of it. scores.h: mask, softcap, bias, softmax of a
// tile. kernels.h: the passes over tiles. tasks.h: who does which tiles.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "problem.h"
#include "sequences.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/float_types.h"
#include "tftoolkit/isa.h"
#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/scratch.h"

namespace {

using namespace tftoolkit::attention;
using tftoolkit::Data;
using tftoolkit::Isa;
using tftoolkit::Load;
using tftoolkit::Parts;
using tftoolkit::Scratch;
using tftoolkit::Store;
using tftoolkit::WithType;

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
#include "scores.h"
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
#include "scores.h"
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
#include "scores.h"
//
#include "kernels.h"
//
#include "tasks.h"
}  // namespace avx512
#undef TK_LANES
#pragma GCC pop_options
#endif

// Whether products of pairs are to be used, of the code for AVX-512.
bool Pairs(const Problem& p) { return p.type == Type::kBFloat16 && tftoolkit::HasBf16Products(); }

void Forward(ffi::ThreadPool& pool, const Problem& p, const Outputs& outputs) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) {
    return Pairs(p) ? avx512::Forward<avx512::Pair>(pool, p, outputs) : avx512::Forward<float>(pool, p, outputs);
  }
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Forward<float>(pool, p, outputs);
#endif
  baseline::Forward<float>(pool, p, outputs);
}

void Backward(ffi::ThreadPool& pool, const Problem& p, const Gradients& g, void* dq) {
#ifdef TK_HAS_ISAS
  if (tftoolkit::BestIsa() == Isa::kAvx512) {
    return Pairs(p) ? avx512::Backward<avx512::Pair>(pool, p, g, dq) : avx512::Backward<float>(pool, p, g, dq);
  }
  if (tftoolkit::BestIsa() == Isa::kAvx2) return avx2::Backward<float>(pool, p, g, dq);
#endif
  baseline::Backward<float>(pool, p, g, dq);
}

template <typename Sequences>
ffi::Error RunForward(ffi::ThreadPool& pool, Problem p, const Sequences& sequences, ffi::Result<ffi::AnyBuffer>& o,
                      ffi::Result<ffi::AnyBuffer>& score_max, ffi::Result<ffi::AnyBuffer>& inv_sum,
                      ffi::Result<ffi::AnyBuffer>& lse, bool has_lse) {
  if (std::string wrong = sequences(p); !wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  Forward(pool, p,
          {o->untyped_data(), Data<float>(score_max), Data<float>(inv_sum), has_lse ? Data<float>(lse) : nullptr});
  return ffi::Error::Success();
}

ffi::Error FlashAttention(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                          ffi::AnyBuffer bias, ffi::AnyBuffer lengths, ffi::Result<ffi::AnyBuffer> o,
                          ffi::Result<ffi::AnyBuffer> score_max, ffi::Result<ffi::AnyBuffer> inv_sum,
                          ffi::Result<ffi::AnyBuffer> lse, bool causal, bool has_bias, bool has_lengths, bool has_lse,
                          float scale, float softcap, int64_t window) {
  const auto sequences = [&](Problem& p) {
    return Batched(q, k, has_bias ? &bias : nullptr, has_lengths ? Data<int32_t>(lengths) : nullptr, p);
  };
  return RunForward(pool, Tensors(q, k, v, {causal, window, scale, softcap}), sequences, o, score_max, inv_sum, lse,
                    has_lse);
}

ffi::Error FlashAttentionVarlen(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                                ffi::AnyBuffer q_borders, ffi::AnyBuffer k_borders, ffi::Result<ffi::AnyBuffer> o,
                                ffi::Result<ffi::AnyBuffer> score_max, ffi::Result<ffi::AnyBuffer> inv_sum,
                                ffi::Result<ffi::AnyBuffer> lse, bool causal, bool has_lse, float scale, float softcap,
                                int64_t window) {
  const auto sequences = [&](Problem& p) {
    return Packed(q, k, Data<int32_t>(q_borders), Data<int32_t>(k_borders), q_borders.dimensions()[0] - 1, p);
  };
  return RunForward(pool, Tensors(q, k, v, {causal, window, scale, softcap}), sequences, o, score_max, inv_sum, lse,
                    has_lse);
}

// What both backward passes get and give beside the sequences.
struct Back {
  ffi::AnyBuffer &o, &score_max, &inv_sum, &d_o;
  ffi::AnyBuffer* dlse;  // may be null
  ffi::Result<ffi::AnyBuffer>&dq, &dk, &dv;
};

template <typename Sequences>
ffi::Error RunBackward(ffi::ThreadPool& pool, Problem p, const Sequences& sequences, const Back& b,
                       ffi::AnyBuffer* dbias = nullptr) {
  if (std::string wrong = sequences(p); !wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  std::vector<float> bias_sums(dbias == nullptr ? 0 : dbias->element_count());
  const Gradients gradients{static_cast<int64_t>(b.score_max.element_count()),
                            b.o.untyped_data(),
                            b.d_o.untyped_data(),
                            b.dlse == nullptr ? nullptr : Data<float>(*b.dlse),
                            Data<float>(b.score_max),
                            Data<float>(b.inv_sum),
                            nullptr,
                            b.dk->untyped_data(),
                            b.dv->untyped_data(),
                            dbias == nullptr ? nullptr : bias_sums.data()};
  Backward(pool, p, gradients, b.dq->untyped_data());
  WithType(p.type, [&](auto zero) {
    using T = decltype(zero);
    for (size_t i = 0; i < bias_sums.size(); ++i) static_cast<T*>(dbias->untyped_data())[i] = Store<T>(bias_sums[i]);
  });
  return ffi::Error::Success();
}

ffi::Error FlashAttentionGrad(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                              ffi::AnyBuffer bias, ffi::AnyBuffer lengths, ffi::AnyBuffer o, ffi::AnyBuffer score_max,
                              ffi::AnyBuffer inv_sum, ffi::AnyBuffer d_o, ffi::AnyBuffer dlse,
                              ffi::Result<ffi::AnyBuffer> dq, ffi::Result<ffi::AnyBuffer> dk,
                              ffi::Result<ffi::AnyBuffer> dv, ffi::Result<ffi::AnyBuffer> dbias, bool biased,
                              bool causal, bool has_dbias, bool has_dlse, bool has_lengths, float scale, float softcap,
                              int64_t window) {
  if (has_dbias && !biased) return ffi::Error::InvalidArgument("has_dbias=True needs biased=True");
  const auto sequences = [&](Problem& p) {
    return Batched(q, k, biased ? &bias : nullptr, has_lengths ? Data<int32_t>(lengths) : nullptr, p);
  };
  return RunBackward(pool, Tensors(q, k, v, {causal, window, scale, softcap}), sequences,
                     {o, score_max, inv_sum, d_o, has_dlse ? &dlse : nullptr, dq, dk, dv},
                     has_dbias ? &*dbias : nullptr);
}

ffi::Error FlashAttentionVarlenGrad(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                                    ffi::AnyBuffer q_borders, ffi::AnyBuffer k_borders, ffi::AnyBuffer o,
                                    ffi::AnyBuffer score_max, ffi::AnyBuffer inv_sum, ffi::AnyBuffer d_o,
                                    ffi::AnyBuffer dlse, ffi::Result<ffi::AnyBuffer> dq, ffi::Result<ffi::AnyBuffer> dk,
                                    ffi::Result<ffi::AnyBuffer> dv, bool causal, bool has_dlse, float scale,
                                    float softcap, int64_t window) {
  const auto sequences = [&](Problem& p) {
    return Packed(q, k, Data<int32_t>(q_borders), Data<int32_t>(k_borders), q_borders.dimensions()[0] - 1, p);
  };
  return RunBackward(pool, Tensors(q, k, v, {causal, window, scale, softcap}), sequences,
                     {o, score_max, inv_sum, d_o, has_dlse ? &dlse : nullptr, dq, dk, dv});
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

XLA_FFI_DEFINE_HANDLER(FlashAttentionCpu, FlashAttention,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT.Attr<bool>("causal")
                           .Attr<bool>("has_bias")
                           .Attr<bool>("has_lengths")
                           .Attr<bool>("has_lse")
                           .Attr<float>("scale")
                           .Attr<float>("softcap")
                           .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER(FlashAttentionGradCpu, FlashAttentionGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT
                           .Attr<bool>("biased")
                           .Attr<bool>("causal")
                           .Attr<bool>("has_dbias")
                           .Attr<bool>("has_dlse")
                           .Attr<bool>("has_lengths")
                           .Attr<float>("scale")
                           .Attr<float>("softcap")
                           .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER(FlashAttentionVarlenCpu, FlashAttentionVarlen,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT.Attr<bool>("causal")
                           .Attr<bool>("has_lse")
                           .Attr<float>("scale")
                           .Attr<float>("softcap")
                           .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER(FlashAttentionVarlenGradCpu, FlashAttentionVarlenGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT
                           .Attr<bool>("causal")
                           .Attr<bool>("has_dlse")
                           .Attr<float>("scale")
                           .Attr<float>("softcap")
                           .Attr<int64_t>("window"));

#define TK_SETTINGS "scale: f32, causal: bool = False, window: i64 = 0, softcap: f32 = 0.0"

TK_OP(FlashAttention,
      "<T: f32 | bf16 | f16>"
      "(q: T[batch queries heads depth], k: T[batch keys kv_heads depth], v: T[batch keys kv_heads value_depth],"
      " bias?: T[bias_batch bias_heads bias_queries keys], lengths?: i32[batch], *, " TK_SETTINGS
      ") -> (o: T[batch queries heads value_depth], score_max: f32[batch queries heads],"
      " inv_sum: f32[batch queries heads], lse?: f32[batch queries heads])");
// `biased`: the bias counts. It is no optional input, since the shape of an output follows from it.
TK_OP(FlashAttentionGrad,
      "<T: f32 | bf16 | f16>"
      "(q: T[batch queries heads depth], k: T[batch keys kv_heads depth], v: T[batch keys kv_heads value_depth],"
      " bias: T[bias_batch bias_heads bias_queries keys], lengths?: i32[batch],"
      " o: T[batch queries heads value_depth], score_max: f32[batch queries heads],"
      " inv_sum: f32[batch queries heads], d_o: T[batch queries heads value_depth],"
      " dlse?: f32[batch queries heads], *, biased: bool, " TK_SETTINGS
      ") -> (dq: T[batch queries heads depth], dk: T[batch keys kv_heads depth],"
      " dv: T[batch keys kv_heads value_depth], dbias?: T[bias_batch bias_heads bias_queries keys])");
TK_OP(FlashAttentionVarlen,
      "<T: f32 | bf16 | f16>"
      "(q: T[queries heads depth], k: T[keys kv_heads depth], v: T[keys kv_heads value_depth],"
      " cu_seqlens_q: i32[sequences+1], cu_seqlens_k: i32[sequences+1], *, " TK_SETTINGS
      ") -> (o: T[queries heads value_depth], score_max: f32[queries heads], inv_sum: f32[queries heads],"
      " lse?: f32[queries heads])");
TK_OP(FlashAttentionVarlenGrad,
      "<T: f32 | bf16 | f16>"
      "(q: T[queries heads depth], k: T[keys kv_heads depth], v: T[keys kv_heads value_depth],"
      " cu_seqlens_q: i32[sequences+1], cu_seqlens_k: i32[sequences+1], o: T[queries heads value_depth],"
      " score_max: f32[queries heads], inv_sum: f32[queries heads], d_o: T[queries heads value_depth],"
      " dlse?: f32[queries heads], *, " TK_SETTINGS
      ") -> (dq: T[queries heads depth], dk: T[keys kv_heads depth], dv: T[keys kv_heads value_depth])");
TK_KERNEL(FlashAttention, CPU, FlashAttentionCpu);
TK_KERNEL(FlashAttentionGrad, CPU, FlashAttentionGradCpu);
TK_KERNEL(FlashAttentionVarlen, CPU, FlashAttentionVarlenCpu);
TK_KERNEL(FlashAttentionVarlenGrad, CPU, FlashAttentionVarlenGradCpu);
