// RMSNorm with a bias, and with a residual added first, and their gradient on the CPU; tftoolkit/norm.h has the maths
// and the floor. Ops of their own, because RmsNorm has neither input.

#include "tftoolkit/dispatch.h"
#include "tftoolkit/norm.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Data;
using tftoolkit::Half;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace norm = tftoolkit::norm;

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_ROWS(T)                                                                                  \
  TK_SIMD void Forward(norm::Forward<T> all, int64_t rows) { norm::ForwardRows<false>(all, rows); } \
  TK_SIMD void Backward(norm::Backward<T> all, int64_t rows, float* dgamma, float* dbias) {         \
    norm::BackwardRows<false>(all, rows, dgamma, dbias);                                            \
  }
TK_ROWS(float)
TK_ROWS(BFloat16)
TK_ROWS(Half)

ffi::Error Run(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const ffi::AnyBuffer* residual,
               const ffi::AnyBuffer& gamma, const ffi::AnyBuffer* bias, Result& y, Result* sum, Result& inv_rms,
               float epsilon) {
  return tftoolkit::WithFloatType("RmsNorm", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const norm::Forward<T> all{Data<T>(x),
                               residual ? Data<T>(*residual) : nullptr,
                               Data<T>(gamma),
                               bias ? Data<T>(*bias) : nullptr,
                               Data<T>(y),
                               sum ? Data<T>(*sum) : nullptr,
                               nullptr,
                               Data<float>(inv_rms),
                               x.dimensions().back(),
                               epsilon};
    return norm::RunForward<T>(pool, all, tftoolkit::RowCount(x),
                               [](const norm::Forward<T>& part, int64_t rows) { Forward(part, rows); });
  });
}

ffi::Error BiasRmsNorm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer bias, Result y,
                       Result inv_rms, float epsilon) {
  return Run(pool, x, nullptr, gamma, &bias, y, nullptr, inv_rms, epsilon);
}

ffi::Error AddRmsNorm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer residual, ffi::AnyBuffer gamma,
                      ffi::AnyBuffer bias, Result y, Result sum, Result inv_rms, float epsilon, bool has_bias) {
  return Run(pool, x, &residual, gamma, has_bias ? &bias : nullptr, y, &sum, inv_rms, epsilon);
}

ffi::Error AddRmsNormGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer d_inv_rms, ffi::AnyBuffer x,
                          ffi::AnyBuffer gamma, ffi::AnyBuffer inv_rms, ffi::AnyBuffer d_sum, Result dx, Result dgamma,
                          Result dbias, bool has_d_sum) {
  return tftoolkit::WithFloatType("AddRmsNormGrad", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const norm::Backward<T> all{Data<T>(dy),
                                nullptr,
                                Data<float>(d_inv_rms),
                                has_d_sum ? Data<T>(d_sum) : nullptr,
                                Data<T>(x),
                                Data<T>(gamma),
                                nullptr,
                                Data<float>(inv_rms),
                                Data<T>(dx),
                                x.dimensions().back()};
    return norm::RunBackward<T>(pool, all, tftoolkit::RowCount(x), Data<T>(dgamma), Data<T>(dbias),
                                [](const norm::Backward<T>& part, int64_t rows, float* dgamma, float* dbias) {
                                  Backward(part, rows, dgamma, dbias);
                                });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(BiasRmsNormCpu, BiasRmsNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER(AddRmsNormCpu, AddRmsNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon")
                           .Attr<bool>("has_bias"));

XLA_FFI_DEFINE_HANDLER(AddRmsNormGradCpu, AddRmsNormGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("has_d_sum"));

TK_OP(BiasRmsNorm,
      "<T: f32 | bf16 | f16>(x: T[... d], gamma: T[d], bias: T[d], *, epsilon: f32 = 1e-6)"
      " -> (y: T[... d], inv_rms: f32[...]) batchable");
TK_OP(AddRmsNorm,
      "<T: f32 | bf16 | f16>(x: T[... d], residual: T[... d], gamma: T[d], bias?: T[d], *, epsilon: f32 = 1e-6)"
      " -> (y: T[... d], sum: T[... d], inv_rms: f32[...]) batchable");
TK_OP(AddRmsNormGrad,
      "<T: f32 | bf16 | f16>"
      "(dy: T[... d], d_inv_rms: f32[...], x: T[... d], gamma: T[d], inv_rms: f32[...], d_sum?: T[... d])"
      " -> (dx: T[... d], dgamma: T[d], dbias: T[d])");
TK_KERNEL(BiasRmsNorm, CPU, BiasRmsNormCpu);
TK_KERNEL(AddRmsNorm, CPU, AddRmsNormCpu);
TK_KERNEL(AddRmsNormGrad, CPU, AddRmsNormGradCpu);
