// SwiGLU and its gradient on the CPU: silu(gate) * up; tftoolkit/gate.h has the floor.

#include "tftoolkit/gate.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Half;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace gate = tftoolkit::gate;

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_ELEMENTS(T)                                                                                       \
  TK_SIMD void Forward(const T* g, const T* up, T* y, int64_t n) { gate::Forward<gate::Silu>(g, up, y, n); } \
  TK_SIMD void Backward(const T* dy, const T* g, const T* up, T* dg, T* dup, int64_t n) {                    \
    gate::Backward<gate::Silu>(dy, g, up, dg, dup, n);                                                       \
  }
TK_ELEMENTS(float)
TK_ELEMENTS(BFloat16)
TK_ELEMENTS(Half)

ffi::Error Swiglu(ffi::ThreadPool pool, ffi::AnyBuffer g, ffi::AnyBuffer up, Result y) {
  return gate::RunForward(pool, "Swiglu", g, up, y, [](auto... arguments) { Forward(arguments...); });
}

ffi::Error SwigluGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer g, ffi::AnyBuffer up, Result dgate,
                      Result dup) {
  return gate::RunBackward(pool, "SwigluGrad", dy, g, up, dgate, dup,
                           [](auto... arguments) { Backward(arguments...); });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(
    SwigluCpu, Swiglu,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER(SwigluGradCpu, SwigluGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>());

TK_OP(Swiglu, "<T: f32 | bf16 | f16>(gate: T[...], up: T[...]) -> (y: T[...]) batchable");
TK_OP(SwigluGrad,
      "<T: f32 | bf16 | f16>(dy: T[...], gate: T[...], up: T[...]) -> (dgate: T[...], dup: T[...]) batchable");
TK_KERNEL(Swiglu, CPU, SwigluCpu);
TK_KERNEL(SwigluGrad, CPU, SwigluGradCpu);
