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

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/float_types.h"
#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"
#include "tftoolkit/tensor_list.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Half;
using tftoolkit::Load;
using tftoolkit::Store;
using F32 = ffi::Buffer<ffi::F32>;

constexpr int64_t kElementsPerTask = 1 << 16;  // some 40 µs, which is about what waking another thread takes

// What is the same for all weights. Of 1 - beta only float64 knows all digits: float32's 1 - 0.999f is off by 5e-5.
struct Rule {
  float beta_1, beta_2;
  float rest_1, rest_2;    // 1 - beta
  float scale_1, scale_2;  // 1 / (1 - beta^t)
  float epsilon;

  Rule(double beta_1, double beta_2, double t, float epsilon)
      : beta_1(static_cast<float>(beta_1)),
        beta_2(static_cast<float>(beta_2)),
        rest_1(static_cast<float>(1 - beta_1)),
        rest_2(static_cast<float>(1 - beta_2)),
        scale_1(Correction(beta_1, t)),
        scale_2(Correction(beta_2, t)),
        epsilon(epsilon) {}

 private:
  // The logarithm of 0 is minus infinity, to which the power is 0: so beta = 0 needs no case of its own.
  static float Correction(double beta, double t) { return static_cast<float>(-1 / std::expm1(t * std::log(beta))); }
};

template <typename T, typename G>
struct Weight {
  T* w;
  float* m;
  float* v;
  float* master;  // null: none
  const G* g;
  float rate, decay;

  Weight From(int64_t i) const { return {w + i, m + i, v + i, master ? master + i : nullptr, g + i, rate, decay}; }
};

// Equal floats need not be: there are two zeros.
TK_INLINE bool SameBits(BFloat16 a, BFloat16 b) { return a.bits == b.bits; }
TK_INLINE bool SameBits(Half a, Half b) { return a.bits == b.bits; }

// The rule comes by value: what is stored could otherwise be a part of it, and it would be read again each time.
template <bool kMaster, typename T, typename G>
TK_INLINE void UpdateAll(Weight<T, G> weight, int64_t n, Rule rule) {
  const auto [w, m, v, master, g, rate, decay] = weight;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float gradient = Load(g[i]);
    m[i] = rule.beta_1 * m[i] + rule.rest_1 * gradient;
    v[i] = rule.beta_2 * v[i] + rule.rest_2 * (gradient * gradient);
    const float direction = m[i] * rule.scale_1 / (std::sqrt(v[i] * rule.scale_2) + rule.epsilon);
    float value = Load(w[i]);
    if constexpr (kMaster) value = SameBits(Store<T>(master[i]), w[i]) ? master[i] : value;
    value -= rate * (direction + decay * value);
    if constexpr (kMaster) master[i] = value;
    w[i] = Store<T>(value);
  }
}

// Run-time dispatch needs functions, not templates.
#define TK_UPDATE(T, G) \
  TK_SIMD void Update(Weight<T, G> weight, int64_t n, Rule rule) { UpdateAll<false>(weight, n, rule); }
#define TK_UPDATE_WITH_MASTER(T, G) \
  TK_SIMD void UpdateWithMaster(Weight<T, G> weight, int64_t n, Rule rule) { UpdateAll<true>(weight, n, rule); }
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

// In both ops the inputs of a weight are w, m, v (the master) and g, the outputs the same without g.
template <bool kMaster>
ffi::Error AdamW(ffi::ThreadPool pool, ffi::Buffer<ffi::PRED> apply, F32 rate, F32 t, ffi::RemainingArgs inputs,
                 ffi::RemainingRets outputs, double beta_1, double beta_2, float epsilon,
                 ffi::Span<const float> rate_factors, ffi::Span<const float> weight_decays) {
  const size_t kept = kMaster ? 4 : 3, count = outputs.size() / kept;
  if (rate_factors.size() != count || weight_decays.size() != count) {
    return ffi::Error::InvalidArgument(
        "each of " + std::to_string(count) + " weights needs a rate factor and a decay, " + "but there are " +
        std::to_string(rate_factors.size()) + " and " + std::to_string(weight_decays.size()));
  }
  if (!*apply.typed_data()) return ffi::Error::Success();  // every output holds its input already
  const Rule rule(beta_1, beta_2, *t.typed_data(), epsilon);
  const auto run = [&](auto weight_type, auto gradient_type) {
    using T = decltype(weight_type);
    using G = decltype(gradient_type);
    std::vector<Weight<T, G>> weights;
    weights.reserve(count);
    tftoolkit::TensorList list(count, kElementsPerTask);
    const auto in_place = [&](size_t i) { return (*outputs.get<ffi::AnyBuffer>(i))->untyped_data(); };
    for (size_t i = 0; i < count; ++i) {
      const auto moment = [&](size_t which) { return static_cast<float*>(in_place(which * count + i)); };
      const ffi::AnyBuffer gradient = *inputs.get<ffi::AnyBuffer>(kept * count + i);
      weights.push_back({static_cast<T*>(in_place(i)), moment(1), moment(2), kMaster ? moment(3) : nullptr,
                         tftoolkit::Data<G>(gradient), *rate.typed_data() * rate_factors[i], weight_decays[i]});
      list.Add(static_cast<int64_t>(gradient.element_count()));
    }
    tftoolkit::ParallelFor(pool, list.tasks(), [&](int64_t task) {
      list.ForEachPiece(task, [&](size_t i, int64_t begin, int64_t n) {
        const Weight<T, G> piece = weights[i].From(begin);
        if constexpr (kMaster) {
          UpdateWithMaster(piece, n, rule);
        } else {
          Update(piece, n, rule);
        }
      });
    });
    return ffi::Error::Success();
  };
  const ffi::DataType type = (*outputs.get<ffi::AnyBuffer>(0))->element_type();
  const ffi::DataType gradients = inputs.get<ffi::AnyBuffer>(kept * count)->element_type();
  return tftoolkit::WithFloatType("AdamW", gradients, [&](auto gradient) {
    if constexpr (kMaster) {
      return type == ffi::BF16 ? run(BFloat16(), gradient) : run(Half(), gradient);  // by the schema
    } else {
      return tftoolkit::WithFloatType("AdamW", type, [&](auto weight) { return run(weight, gradient); });
    }
  });
}

}  // namespace

#define TK_BINDING                                  \
  ffi::Ffi::Bind()                                  \
      .Ctx<ffi::ThreadPool>()                       \
      .Arg<ffi::Buffer<ffi::PRED>>()                \
      .Arg<F32>()                                   \
      .Arg<F32>()                                   \
      .RemainingArgs()                              \
      .RemainingRets()                              \
      .Attr<double>("beta_1")                       \
      .Attr<double>("beta_2")                       \
      .Attr<float>("epsilon")                       \
      .Attr<ffi::Span<const float>>("rate_factors") \
      .Attr<ffi::Span<const float>>("weight_decays")
XLA_FFI_DEFINE_HANDLER(AdamWCpu, AdamW<false>, TK_BINDING);
XLA_FFI_DEFINE_HANDLER(AdamWMasterCpu, AdamW<true>, TK_BINDING);

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
