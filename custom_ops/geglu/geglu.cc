// GEGLU and its gradient on the CPU: gelu(gate) * up, by the normal distribution or by tanh; tftoolkit/gate.h has the
// floor.

#include "tftoolkit/gate.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Half;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace gate = tftoolkit::gate;

// One plain function per dtype and activation: run-time dispatch needs functions, not templates.
#define TK_ELEMENTS(T)                                                                                       \
  TK_SIMD void Forward(const T* g, const T* up, T* y, int64_t n) { gate::Forward<gate::Gelu>(g, up, y, n); } \
  TK_SIMD void Backward(const T* dy, const T* g, const T* up, T* dg, T* dup, int64_t n) {                    \
    gate::Backward<gate::Gelu>(dy, g, up, dg, dup, n);                                                       \
  }                                                                                                          \
  TK_SIMD void ForwardApproximate(const T* g, const T* up, T* y, int64_t n) {                                \
    gate::Forward<gate::ApproximateGelu>(g, up, y, n);                                                       \
  }                                                                                                          \
  TK_SIMD void BackwardApproximate(const T* dy, const T* g, const T* up, T* dg, T* dup, int64_t n) {         \
    gate::Backward<gate::ApproximateGelu>(dy, g, up, dg, dup, n);                                            \
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
