// One AdamW update of all weights of a model in one call, on the CPU. Per element, in float32, with t counted from 1:
//
//   m <- beta_1 * m + (1 - beta_1) * g            m' = m / (1 - beta_1^t)
//   v <- beta_2 * v + (1 - beta_2) * g^2          v' = v / (1 - beta_2^t)
//   w <- w - rate * (m' / (sqrt(v') + epsilon) + weight_decay * w)
//
// The floor is memory traffic: w, m, v and g are read and w, m and v are written once, 28 bytes per weight; where all
// of that is in a cache, it is one square root and one division per weight. As separate operations the same update
// passes over memory a dozen times and costs a call per weight and operation, which for small weights is most of the
// time.
//
// Every element is computed by itself, so the result does not depend on the number of threads.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"
#include "tftoolkit/tensor_list.h"

namespace {

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

struct Weight {
  float* w;
  float* m;
  float* v;
  const float* g;
  float rate, decay;
};

// The rule comes by value: what is stored could otherwise be a part of it, and it would be read again each time.
TK_SIMD void Update(Weight weight, int64_t n, Rule rule) {
  const auto [w, m, v, g, rate, decay] = weight;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    m[i] = rule.beta_1 * m[i] + rule.rest_1 * g[i];
    v[i] = rule.beta_2 * v[i] + rule.rest_2 * (g[i] * g[i]);
    const float direction = m[i] * rule.scale_1 / (std::sqrt(v[i] * rule.scale_2) + rule.epsilon);
    w[i] -= rate * (direction + decay * w[i]);
  }
}

ffi::Error AdamW(ffi::ThreadPool pool, ffi::Buffer<ffi::PRED> apply, F32 rate, F32 t, ffi::RemainingArgs inputs,
                 ffi::RemainingRets outputs, double beta_1, double beta_2, float epsilon,
                 ffi::Span<const float> rate_factors, ffi::Span<const float> weight_decays) {
  const size_t count = outputs.size() / 3;
  if (rate_factors.size() != count || weight_decays.size() != count) {
    return ffi::Error::InvalidArgument(
        "each of " + std::to_string(count) + " weights needs a rate factor and a decay, " + "but there are " +
        std::to_string(rate_factors.size()) + " and " + std::to_string(weight_decays.size()));
  }
  if (!*apply.typed_data()) return ffi::Error::Success();  // every output holds its input already
  std::vector<Weight> weights;
  weights.reserve(count);
  tftoolkit::TensorList list(count, kElementsPerTask);
  // The inputs are four lists, the outputs three; the schema has seen to it that all are float32 and fit together.
  const auto in_place = [&](size_t i) {
    return static_cast<float*>((*outputs.get<ffi::AnyBuffer>(i))->untyped_data());
  };
  for (size_t i = 0; i < count; ++i) {
    const ffi::AnyBuffer gradient = *inputs.get<ffi::AnyBuffer>(3 * count + i);
    weights.push_back({in_place(i), in_place(count + i), in_place(2 * count + i),
                       static_cast<const float*>(gradient.untyped_data()), *rate.typed_data() * rate_factors[i],
                       weight_decays[i]});
    list.Add(static_cast<int64_t>(gradient.element_count()));
  }
  const Rule rule(beta_1, beta_2, *t.typed_data(), epsilon);
  tftoolkit::ParallelFor(pool, list.tasks(), [&](int64_t task) {
    list.ForEachPiece(task, [&](size_t i, int64_t begin, int64_t n) {
      const Weight& all = weights[i];
      Update({all.w + begin, all.m + begin, all.v + begin, all.g + begin, all.rate, all.decay}, n, rule);
    });
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(AdamWCpu, AdamW,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::Buffer<ffi::PRED>>()
                           .Arg<F32>()
                           .Arg<F32>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<double>("beta_1")
                           .Attr<double>("beta_2")
                           .Attr<float>("epsilon")
                           .Attr<ffi::Span<const float>>("rate_factors")
                           .Attr<ffi::Span<const float>>("weight_decays"));

TK_OP(AdamW,
      "(apply: bool[], rate: f32[], t: f32[], *w: f32[...], *m: f32[...], *v: f32[...], *g: f32[...], *,"
      " beta_1: f64, beta_2: f64, epsilon: f32, rate_factors: f32[], weight_decays: f32[])"
      " -> (*new_w: f32[...] = w, *new_m: f32[...] = m, *new_v: f32[...] = v)");
TK_KERNEL(AdamW, CPU, AdamWCpu);
