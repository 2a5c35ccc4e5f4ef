// One AdamW update of all weights of a model in one call, on the CPU. Per element, in float32, with t counted from 1:
//
//   m <- beta_1 * m + (1 - beta_1) * g            m' = m / (1 - beta_1^t)
//   v <- beta_2 * v + (1 - beta_2) * g^2          v' = v / (1 - beta_2^t)
//   w <- w - rate * (m' / (sqrt(v') + epsilon) + weight_decay * w)
//
// Weights and gradients are loaded from float32, bfloat16 or half, and weights rounded once when they are stored. With
// a master, a float32 copy of the weight, that is what is updated, and w is its rounding. Where w is not the rounding
// of the master any more, somebody has assigned it since, and the update begins from w.
//
// The floor is memory traffic: w, m, v (and the master) are read and written once, g is read, in bytes per weight 28
// for float32, 22 for bfloat16 with gradients of bfloat16, 30 with a master; where all of that is in a cache, it is one
// square root and one division per weight. As separate operations the same update passes over memory a dozen times and
// costs a call per weight and operation, which for small weights is most of the time.
//
// Every element is computed by itself, so the result does not depend on the number of threads.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lists.h"
#include "tftoolkit/adam_rule.h"
#include "tftoolkit/float_types.h"
#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"
#include "tftoolkit/tensor_list.h"

namespace {

using tftoolkit::AdamRule;
using tftoolkit::BFloat16;
using tftoolkit::Half;
using F32 = ffi::Buffer<ffi::F32>;

constexpr int64_t kElementsPerTask = 1 << 16;  // some 40 µs, which is about what waking another thread takes

template <bool kMaster, typename T, typename G>
TK_INLINE void UpdateAll(adamw::Weight<T, G> weight, float rate, AdamRule rule) {
  const auto [w, m, v, master, g, n, factor, decay] = weight;
  tftoolkit::MoveByAdam<kMaster>(w, m, v, master, g, n, rate * factor, decay, rule);
}

// Run-time dispatch needs functions, not templates.
#define TK_UPDATE(T, G) \
  TK_SIMD void Update(adamw::Weight<T, G> weight, float rate, AdamRule rule) { UpdateAll<false>(weight, rate, rule); }
#define TK_UPDATE_WITH_MASTER(T, G)                                                      \
  TK_SIMD void UpdateWithMaster(adamw::Weight<T, G> weight, float rate, AdamRule rule) { \
    UpdateAll<true>(weight, rate, rule);                                                 \
  }
TK_UPDATE(float, float)
TK_UPDATE(float, BFloat16)
TK_UPDATE(float, Half)
TK_UPDATE(BFloat16, float)
TK_UPDATE(BFloat16, BFloat16)
TK_UPDATE(BFloat16, Half)
TK_UPDATE(Half, float)
TK_UPDATE(Half, BFloat16)
TK_UPDATE(Half, Half)
TK_UPDATE_WITH_MASTER(BFloat16, float)
TK_UPDATE_WITH_MASTER(BFloat16, BFloat16)
TK_UPDATE_WITH_MASTER(BFloat16, Half)
TK_UPDATE_WITH_MASTER(Half, float)
TK_UPDATE_WITH_MASTER(Half, BFloat16)
TK_UPDATE_WITH_MASTER(Half, Half)

template <bool kMaster>
ffi::Error AdamW(ffi::ThreadPool pool, ffi::Buffer<ffi::PRED> apply, F32 rate, F32 t, ffi::RemainingArgs inputs,
                 ffi::RemainingRets outputs, double beta_1, double beta_2, float epsilon,
                 ffi::Span<const float> rate_factors, ffi::Span<const float> weight_decays) {
  const adamw::Lists<kMaster> lists(inputs, outputs, rate_factors, weight_decays);
  if (ffi::Error error = lists.Check(); error.failure()) return error;
  if (!*apply.typed_data()) return ffi::Error::Success();  // every output holds its input already
  const AdamRule rule(beta_1, beta_2, *t.typed_data(), epsilon);
  return lists.WithTypes([&](auto weight_type, auto gradient_type) {
    using T = decltype(weight_type);
    using G = decltype(gradient_type);
    std::vector<adamw::Weight<T, G>> weights;
    weights.reserve(lists.count());
    tftoolkit::TensorList sizes(lists.count(), kElementsPerTask);
    for (size_t i = 0; i < lists.count(); ++i) {
      weights.push_back(lists.template At<T, G>(i));
      sizes.Add(weights.back().n);
    }
    tftoolkit::ParallelFor(pool, sizes.tasks(), [&](int64_t task) {
      sizes.ForEachPiece(task, [&](size_t i, int64_t begin, int64_t n) {
        const adamw::Weight<T, G> part = weights[i].Part(begin, n);
        if constexpr (kMaster) {
          UpdateWithMaster(part, *rate.typed_data(), rule);
        } else {
          Update(part, *rate.typed_data(), rule);
        }
      });
    });
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(AdamWCpu, AdamW<false>, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().TK_ADAMW_ARGUMENTS);
XLA_FFI_DEFINE_HANDLER(AdamWMasterCpu, AdamW<true>, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().TK_ADAMW_ARGUMENTS);

TK_OP(AdamW,
      "<T: f32 | bf16 | f16, G: f32 | bf16 | f16>"
      "(apply: bool[], rate: f32[], t: f32[], *w: T[...], *m: f32[...], *v: f32[...], *g: G[...], *,"
      " beta_1: f64, beta_2: f64, epsilon: f32, rate_factors: f32[], weight_decays: f32[])"
      " -> (*new_w: T[...] = w, *new_m: f32[...] = m, *new_v: f32[...] = v)");
TK_OP(AdamWMaster,
      "<T: bf16 | f16, G: f32 | bf16 | f16>"
      "(apply: bool[], rate: f32[], t: f32[], *w: T[...], *m: f32[...], *v: f32[...], *master: f32[...], *g: G[...], *,"
      " beta_1: f64, beta_2: f64, epsilon: f32, rate_factors: f32[], weight_decays: f32[])"
      " -> (*new_w: T[...] = w, *new_m: f32[...] = m, *new_v: f32[...] = v, *new_master: f32[...] = master)");
TK_KERNEL(AdamW, CPU, AdamWCpu);
TK_KERNEL(AdamWMaster, CPU, AdamWMasterCpu);
