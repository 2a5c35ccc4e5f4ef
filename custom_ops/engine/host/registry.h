// The ops and handlers that op libraries have declared in this process. Entries are never removed: TensorFlow keeps
// pointers into them.

#ifndef TFTOOLKIT_HOST_REGISTRY_H_
#define TFTOOLKIT_HOST_REGISTRY_H_

#include <string>

#include "signature.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/ffi/api/c_api.h"

namespace tftoolkit {

// nullptr when the op was never registered.
const Signature* FindSignature(const std::string& op_type);

// `platform` is "CPU" or "CUDA". nullptr when there is none.
XLA_FFI_Handler* FindHandler(const std::string& op_type, const std::string& platform);

// Makes the kernel that calls the handler directly (kernel.cc), or emits it as an XLA custom call (xla_kernel.cc).
tensorflow::OpKernel* MakeKernel(tensorflow::OpKernelConstruction* context);
tensorflow::OpKernel* MakeXlaKernel(tensorflow::OpKernelConstruction* context);

// Tells XLA's own runtime about the handler, under the op's type as the custom call's name (xla_kernel.cc).
absl::Status RegisterWithXla(const std::string& op_type, const std::string& platform, XLA_FFI_Handler* handler);

}  // namespace tftoolkit

#endif  // TFTOOLKIT_HOST_REGISTRY_H_
