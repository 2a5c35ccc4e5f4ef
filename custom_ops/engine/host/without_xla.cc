// Stands in for xla_kernel.cc where that cannot be compiled: jit_compile=True says why. TK_WITHOUT_XLA is the reason.

#ifdef TK_WITHOUT_XLA

#include "absl/strings/str_cat.h"
#include "registry.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tftoolkit {
namespace {

class RefusingKernel : public tensorflow::OpKernel {
 public:
  explicit RefusingKernel(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    context->CtxFailure(absl::UnimplementedError(
        absl::StrCat(type_string(), " cannot run inside XLA programs (jit_compile=True) here: ", TK_WITHOUT_XLA,
                     ". It runs eagerly and in tf.function without jit_compile")));
  }

  void Compute(tensorflow::OpKernelContext*) override {}  // never constructed
};

}  // namespace

tensorflow::OpKernel* MakeXlaKernel(tensorflow::OpKernelConstruction* context) { return new RefusingKernel(context); }

absl::Status RegisterWithXla(const std::string&, const std::string&, XLA_FFI_Handler*) { return absl::OkStatus(); }

}  // namespace tftoolkit

#endif  // TK_WITHOUT_XLA
