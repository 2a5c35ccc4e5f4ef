// The XLA_FFI_Api table that handlers get from TensorFlow kernels: errors, the intra-op thread pool, the CUDA stream
// and scratch memory. What only an XLA executable can offer (state, futures, run ids) answers UNIMPLEMENTED.

#ifndef TFTOOLKIT_HOST_FFI_API_H_
#define TFTOOLKIT_HOST_FFI_API_H_

#include <string>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "xla/ffi/api/c_api.h"

// Opaque in the C API: each host defines its own.
struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  std::string message;
};

struct XLA_FFI_ExecutionContext {
  tensorflow::OpKernelContext* kernel;
  std::vector<tensorflow::Tensor> scratch;  // freed with the call; on a GPU the allocator is stream-ordered
};

namespace tftoolkit {

const XLA_FFI_Api* FfiApi();

}  // namespace tftoolkit

#endif  // TFTOOLKIT_HOST_FFI_API_H_
