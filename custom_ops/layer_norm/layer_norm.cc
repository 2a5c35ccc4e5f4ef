// LayerNorm, with and without a residual added first, and their gradient on the CPU; tftoolkit/norm.h has the maths and
// the floor. x - mean is computed twice per row and never stored.

#include "tftoolkit/dispatch.h"
#include "tftoolkit/norm.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Data;
using tftoolkit::Half;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace norm = tftoolkit::norm;

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_ROWS(T)                                                                                 \
  TK_SIMD void Forward(norm::Forward<T> all, int64_t rows) { norm::ForwardRows<true>(all, rows); } \
  TK_SIMD void Backward(norm::Backward<T> all, int64_t rows, float* dgamma, float* dbias) {        \
    norm::BackwardRows<true>(all, rows, dgamma, dbias);                                            \
  }
TK_ROWS(float)
TK_ROWS(BFloat16)
TK_ROWS(Half)

ffi::Error Run(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const ffi::AnyBuffer* residual,
               const ffi::AnyBuffer& gamma, const ffi::AnyBuffer& beta, Result& y, Result* sum, Result& mean,
               Result& inv_std, float epsilon, bool has_beta) {
  return tftoolkit::WithFloatType("LayerNorm", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const norm::Forward<T> all{Data<T>(x),
                               residual ? Data<T>(*residual) : nullptr,
                               Data<T>(gamma),
                               has_beta ? Data<T>(beta) : nullptr,
                               Data<T>(y),
                               sum ? Data<T>(*sum) : nullptr,
                               Data<float>(mean),
                               Data<float>(inv_std),
                               x.dimensions().back(),
                               epsilon};
    return norm::RunForward<T>(pool, all, tftoolkit::RowCount(x),
                               [](const norm::Forward<T>& part, int64_t rows) { Forward(part, rows); });
  });
}

ffi::Error LayerNorm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer beta, Result y,
                     Result mean, Result inv_std, float epsilon, bool has_beta) {
  return Run(pool, x, nullptr, gamma, beta, y, nullptr, mean, inv_std, epsilon, has_beta);
}

ffi::Error AddLayerNorm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer residual, ffi::AnyBuffer gamma,
                        ffi::AnyBuffer beta, Result y, Result sum, Result mean, Result inv_std, float epsilon,
                        bool has_beta) {
  return Run(pool, x, &residual, gamma, beta, y, &sum, mean, inv_std, epsilon, has_beta);
}

ffi::Error LayerNormGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer d_mean, ffi::AnyBuffer d_inv_std,
                         ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer mean, ffi::AnyBuffer inv_std,
                         ffi::AnyBuffer d_sum, Result dx, Result dgamma, Result dbeta, bool has_d_sum) {
  return tftoolkit::WithFloatType("LayerNormGrad", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const norm::Backward<T> all{
        Data<T>(dy), Data<float>(d_mean),  Data<float>(d_inv_std), has_d_sum ? Data<T>(d_sum) : nullptr,
        Data<T>(x),  Data<T>(gamma),       Data<float>(mean),      Data<float>(inv_std),
        Data<T>(dx), x.dimensions().back()};
    return norm::RunBackward<T>(pool, all, tftoolkit::RowCount(x), Data<T>(dgamma), Data<T>(dbeta),
                                [](const norm::Backward<T>& part, int64_t rows, float* dgamma, float* dbeta) {
                                  Backward(part, rows, dgamma, dbeta);
                                });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(LayerNormCpu, LayerNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon")
                           .Attr<bool>("has_beta"));

XLA_FFI_DEFINE_HANDLER(AddLayerNormCpu, AddLayerNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon")
                           .Attr<bool>("has_beta"));

XLA_FFI_DEFINE_HANDLER(LayerNormGradCpu, LayerNormGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
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

TK_OP(LayerNorm,
      "<T: f32 | bf16 | f16>(x: T[... d], gamma: T[d], beta?: T[d], *, epsilon: f32 = 1e-5)"
      " -> (y: T[... d], mean: f32[...], inv_std: f32[...]) batchable");
TK_OP(AddLayerNorm,
      "<T: f32 | bf16 | f16>(x: T[... d], residual: T[... d], gamma: T[d], beta?: T[d], *, epsilon: f32 = 1e-5)"
      " -> (y: T[... d], sum: T[... d], mean: f32[...], inv_std: f32[...]) batchable");
TK_OP(LayerNormGrad,
      "<T: f32 | bf16 | f16>"
      "(dy: T[... d], d_mean: f32[...], d_inv_std: f32[...], x: T[... d], gamma: T[d], mean: f32[...],"
      " inv_std: f32[...], d_sum?: T[... d]) -> (dx: T[... d], dgamma: T[d], dbeta: T[d])");
TK_KERNEL(LayerNorm, CPU, LayerNormCpu);
TK_KERNEL(AddLayerNorm, CPU, AddLayerNormCpu);
TK_KERNEL(LayerNormGrad, CPU, LayerNormGradCpu);
