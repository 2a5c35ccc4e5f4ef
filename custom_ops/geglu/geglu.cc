// GEGLU and its gradient on the CPU: gelu(gate) * up; tftoolkit/gate.h has the floor.
//
//   exact:        gelu(x) = x * P(x), P being the standard normal distribution, whose derivative is its density
//   approximate:  gelu(x) = x * (1 + tanh(t)) / 2 = x * sigmoid(2t),  t = sqrt(2 / pi) * (x + 0.044715 x^3)

#include "tftoolkit/gate.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Half;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace gate = tftoolkit::gate;

struct Gelu {
  static TK_INLINE gate::Activation Of(float x) {
    const tftoolkit::Normal normal = tftoolkit::StandardNormal(x);
    return {x * normal.below, normal.below + x * normal.density};
  }
};

struct ApproximateGelu {
  static TK_INLINE gate::Activation Of(float x) {
    constexpr float kScale = 1.5957691216f;  // 2 sqrt(2 / pi)
    const float square = x * x;
    const float s = tftoolkit::Sigmoid(kScale * x * (1.0f + 0.044715f * square));
    // Where s (1 - s) is 0, the square may be infinite.
    const float bend = s * (1.0f - s);
    const float inner = bend == 0.0f ? 0.0f : bend * x * (kScale * (1.0f + 0.134145f * square));
    return {x * s, s + inner};
  }
};

// One plain function per dtype and activation: run-time dispatch needs functions, not templates.
#define TK_ELEMENTS(T)                                                                                 \
  TK_SIMD void Forward(const T* g, const T* up, T* y, int64_t n) { gate::Forward<Gelu>(g, up, y, n); } \
  TK_SIMD void Backward(const T* dy, const T* g, const T* up, T* dg, T* dup, int64_t n) {              \
    gate::Backward<Gelu>(dy, g, up, dg, dup, n);                                                       \
  }                                                                                                    \
  TK_SIMD void ForwardApproximate(const T* g, const T* up, T* y, int64_t n) {                          \
    gate::Forward<ApproximateGelu>(g, up, y, n);                                                       \
  }                                                                                                    \
  TK_SIMD void BackwardApproximate(const T* dy, const T* g, const T* up, T* dg, T* dup, int64_t n) {   \
    gate::Backward<ApproximateGelu>(dy, g, up, dg, dup, n);                                            \
  }
TK_ELEMENTS(float)
TK_ELEMENTS(BFloat16)
TK_ELEMENTS(Half)

ffi::Error Geglu(ffi::ThreadPool pool, ffi::AnyBuffer g, ffi::AnyBuffer up, Result y, bool approximate) {
  return gate::RunForward(pool, "Geglu", g, up, y, [approximate](auto... arguments) {
    approximate ? ForwardApproximate(arguments...) : Forward(arguments...);
  });
}

ffi::Error GegluGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer g, ffi::AnyBuffer up, Result dgate,
                     Result dup, bool approximate) {
  return gate::RunBackward(pool, "GegluGrad", dy, g, up, dgate, dup, [approximate](auto... arguments) {
    approximate ? BackwardApproximate(arguments...) : Backward(arguments...);
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(GegluCpu, Geglu,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("approximate"));

XLA_FFI_DEFINE_HANDLER(GegluGradCpu, GegluGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("approximate"));

TK_OP(Geglu, "<T: f32 | bf16 | f16>(gate: T[...], up: T[...], *, approximate: bool = false) -> (y: T[...]) batchable");
TK_OP(GegluGrad,
      "<T: f32 | bf16 | f16>(dy: T[...], gate: T[...], up: T[...], *, approximate: bool = false)"
      " -> (dgate: T[...], dup: T[...]) batchable");
TK_KERNEL(Geglu, CPU, GegluCpu);
TK_KERNEL(GegluGrad, CPU, GegluGradCpu);
