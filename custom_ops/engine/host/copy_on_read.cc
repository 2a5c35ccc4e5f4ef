// Inside XLA a read never copies a variable, so what ends the copies has nothing to do there. TensorFlow has no such
// kernel for XLA and would refuse to compile the function.

#include "tensorflow/core/framework/op_kernel.h"

namespace tftoolkit {
namespace {

class NothingToDo : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(tensorflow::OpKernelContext*) override {}
};

REGISTER_KERNEL_BUILDER(Name("DisableCopyOnRead").Device("XLA_CPU_JIT"), NothingToDo);
REGISTER_KERNEL_BUILDER(Name("DisableCopyOnRead").Device("XLA_GPU_JIT"), NothingToDo);

}  // namespace
}  // namespace tftoolkit
