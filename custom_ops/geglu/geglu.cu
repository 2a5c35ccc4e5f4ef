// GEGLU and its gradient on CUDA; tftoolkit/gate_cuda.h has the kernels and what they move.

#include "tftoolkit/gate_cuda.h"

namespace {

using Result = ffi::Result<ffi::AnyBuffer>;
namespace gate = tftoolkit::gate;

ffi::Error Geglu(cudaStream_t stream, ffi::AnyBuffer g, ffi::AnyBuffer up, Result y, bool approximate) {
  const auto launch = approximate ? gate::LaunchForward<gate::ApproximateGelu> : gate::LaunchForward<gate::Gelu>;
  return launch(stream, "Geglu", g, up, y);
}

ffi::Error GegluGrad(cudaStream_t stream, ffi::AnyBuffer dy, ffi::AnyBuffer g, ffi::AnyBuffer up, Result dgate,
                     Result dup, bool approximate) {
  const auto launch = approximate ? gate::LaunchBackward<gate::ApproximateGelu> : gate::LaunchBackward<gate::Gelu>;
  return launch(stream, "GegluGrad", dy, g, up, dgate, dup);
}

}  // namespace

// Command-buffer compatible: the same launches for the same shapes, so XLA may replay them as a CUDA graph.
XLA_FFI_DEFINE_HANDLER(GegluCuda, Geglu,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("approximate"),
                       {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER(GegluGradCuda, GegluGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<bool>("approximate"),
                       {ffi::Traits::kCmdBufferCompatible});

TK_KERNEL(Geglu, CUDA, GegluCuda);
TK_KERNEL(GegluGrad, CUDA, GegluGradCuda);
