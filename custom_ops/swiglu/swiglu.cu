// SwiGLU and its gradient on CUDA; tftoolkit/gate_cuda.h has the kernels and what they move.

#include "tftoolkit/gate_cuda.h"

namespace {

using Result = ffi::Result<ffi::AnyBuffer>;
namespace gate = tftoolkit::gate;

ffi::Error Swiglu(cudaStream_t stream, ffi::AnyBuffer g, ffi::AnyBuffer up, Result y) {
  return gate::LaunchForward<gate::Silu>(stream, "Swiglu", g, up, y);
}

ffi::Error SwigluGrad(cudaStream_t stream, ffi::AnyBuffer dy, ffi::AnyBuffer g, ffi::AnyBuffer up, Result dgate,
                      Result dup) {
  return gate::LaunchBackward<gate::Silu>(stream, "SwigluGrad", dy, g, up, dgate, dup);
}

}  // namespace

// Command-buffer compatible: the same launches for the same shapes, so XLA may replay them as a CUDA graph.
XLA_FFI_DEFINE_HANDLER(SwigluCuda, Swiglu,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>(),
                       {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER(SwigluGradCuda, SwigluGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>(),
                       {ffi::Traits::kCmdBufferCompatible});

TK_KERNEL(Swiglu, CUDA, SwigluCuda);
TK_KERNEL(SwigluGrad, CUDA, SwigluGradCuda);
