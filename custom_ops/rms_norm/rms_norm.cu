// RMSNorm, with and without a bias and a residual added first, and their gradients on CUDA; tftoolkit/norm_cuda.h has
// the kernels and what they move.

#include "tftoolkit/dispatch.h"
#include "tftoolkit/norm_cuda.h"

namespace {

using tftoolkit::Data;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace norm = tftoolkit::norm;

ffi::Error Run(cudaStream_t stream, const ffi::AnyBuffer& x, const ffi::AnyBuffer* residual,
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
    return norm::LaunchForward<false>(stream, all, tftoolkit::RowCount(x));
  });
}

ffi::Error RmsNorm(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer gamma, Result y, Result inv_rms,
                   float epsilon) {
  return Run(stream, x, nullptr, gamma, nullptr, y, nullptr, inv_rms, epsilon);
}

ffi::Error BiasRmsNorm(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer bias, Result y,
                       Result inv_rms, float epsilon) {
  return Run(stream, x, nullptr, gamma, &bias, y, nullptr, inv_rms, epsilon);
}

ffi::Error AddRmsNorm(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer residual, ffi::AnyBuffer gamma,
                      ffi::AnyBuffer bias, Result y, Result sum, Result inv_rms, float epsilon, bool has_bias) {
  return Run(stream, x, &residual, gamma, has_bias ? &bias : nullptr, y, &sum, inv_rms, epsilon);
}

// No `d_sum`: nothing came back from the sum with the residual. No `dbias`: there is no bias.
ffi::Error RunBackward(cudaStream_t stream, ffi::ScratchAllocator& scratch, const ffi::AnyBuffer& dy,
                       const ffi::AnyBuffer& d_inv_rms, const ffi::AnyBuffer& x, const ffi::AnyBuffer& gamma,
                       const ffi::AnyBuffer& inv_rms, const ffi::AnyBuffer* d_sum, Result& dx, Result& dgamma,
                       Result* dbias) {
  return tftoolkit::WithFloatType("RmsNormGrad", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const norm::Backward<T> all{Data<T>(dy),
                                nullptr,
                                Data<float>(d_inv_rms),
                                d_sum ? Data<T>(*d_sum) : nullptr,
                                Data<T>(x),
                                Data<T>(gamma),
                                nullptr,
                                Data<float>(inv_rms),
                                Data<T>(dx),
                                x.dimensions().back()};
    T* to_bias = dbias ? Data<T>(*dbias) : nullptr;
    return norm::LaunchBackward<false>(stream, scratch, all, tftoolkit::RowCount(x), Data<T>(dgamma), to_bias);
  });
}

ffi::Error RmsNormGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer dy, ffi::AnyBuffer d_inv_rms,
                       ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer inv_rms, Result dx, Result dgamma) {
  return RunBackward(stream, scratch, dy, d_inv_rms, x, gamma, inv_rms, nullptr, dx, dgamma, nullptr);
}

ffi::Error AddRmsNormGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer dy,
                          ffi::AnyBuffer d_inv_rms, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer inv_rms,
                          ffi::AnyBuffer d_sum, Result dx, Result dgamma, Result dbias, bool has_d_sum) {
  return RunBackward(stream, scratch, dy, d_inv_rms, x, gamma, inv_rms, has_d_sum ? &d_sum : nullptr, dx, dgamma,
                     &dbias);
}

}  // namespace

// Command-buffer compatible: the same launches for the same shapes, so XLA may replay them as a CUDA graph.
XLA_FFI_DEFINE_HANDLER(RmsNormCuda, RmsNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon"),
                       {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER(BiasRmsNormCuda, BiasRmsNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon"),
                       {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER(AddRmsNormCuda, AddRmsNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon")
                           .Attr<bool>("has_bias"),
                       {ffi::Traits::kCmdBufferCompatible});

// Not so the gradients: their scratch memory must not be captured.
XLA_FFI_DEFINE_HANDLER(RmsNormGradCuda, RmsNormGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER(AddRmsNormGradCuda, AddRmsNormGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
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

TK_KERNEL(RmsNorm, CUDA, RmsNormCuda);
TK_KERNEL(BiasRmsNorm, CUDA, BiasRmsNormCuda);
TK_KERNEL(AddRmsNorm, CUDA, AddRmsNormCuda);
TK_KERNEL(RmsNormGrad, CUDA, RmsNormGradCuda);
TK_KERNEL(AddRmsNormGrad, CUDA, AddRmsNormGradCuda);
