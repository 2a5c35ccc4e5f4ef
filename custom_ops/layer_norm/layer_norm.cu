// LayerNorm, with and without a residual added first, and their gradient on CUDA; tftoolkit/norm_cuda.h has the kernels
// and what they move.

#include "tftoolkit/dispatch.h"
#include "tftoolkit/norm_cuda.h"

namespace {

using tftoolkit::Data;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace norm = tftoolkit::norm;

ffi::Error Run(cudaStream_t stream, const ffi::AnyBuffer& x, const ffi::AnyBuffer* residual,
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
    return norm::LaunchForward<true>(stream, all, tftoolkit::RowCount(x));
  });
}

ffi::Error LayerNorm(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer beta, Result y,
                     Result mean, Result inv_std, float epsilon, bool has_beta) {
  return Run(stream, x, nullptr, gamma, beta, y, nullptr, mean, inv_std, epsilon, has_beta);
}

ffi::Error AddLayerNorm(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer residual, ffi::AnyBuffer gamma,
                        ffi::AnyBuffer beta, Result y, Result sum, Result mean, Result inv_std, float epsilon,
                        bool has_beta) {
  return Run(stream, x, &residual, gamma, beta, y, &sum, mean, inv_std, epsilon, has_beta);
}

ffi::Error LayerNormGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer dy, ffi::AnyBuffer d_mean,
                         ffi::AnyBuffer d_inv_std, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer mean,
                         ffi::AnyBuffer inv_std, ffi::AnyBuffer d_sum, Result dx, Result dgamma, Result dbeta,
                         bool has_d_sum) {
  return tftoolkit::WithFloatType("LayerNormGrad", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const norm::Backward<T> all{
        Data<T>(dy), Data<float>(d_mean),  Data<float>(d_inv_std), has_d_sum ? Data<T>(d_sum) : nullptr,
        Data<T>(x),  Data<T>(gamma),       Data<float>(mean),      Data<float>(inv_std),
        Data<T>(dx), x.dimensions().back()};
    return norm::LaunchBackward<true>(stream, scratch, all, tftoolkit::RowCount(x), Data<T>(dgamma), Data<T>(dbeta));
  });
}

}  // namespace

// Command-buffer compatible: the same launches for the same shapes, so XLA may replay them as a CUDA graph.
XLA_FFI_DEFINE_HANDLER(LayerNormCuda, LayerNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon")
                           .Attr<bool>("has_beta"),
                       {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER(AddLayerNormCuda, AddLayerNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon")
                           .Attr<bool>("has_beta"),
                       {ffi::Traits::kCmdBufferCompatible});

// Not so the gradient: its scratch memory must not be captured.
XLA_FFI_DEFINE_HANDLER(LayerNormGradCuda, LayerNormGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
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

TK_KERNEL(LayerNorm, CUDA, LayerNormCuda);
TK_KERNEL(AddLayerNorm, CUDA, AddLayerNormCuda);
TK_KERNEL(LayerNormGrad, CUDA, LayerNormGradCuda);
