// The value of a variable for an op that replaces it: TfToolkit>VariableMemory.
//
// ReadVariableOp shares the variable's memory with whoever reads, so an op that could compute in place finds that it is
// not alone, and has to copy: of Adam's weights and moments a pass over all of them, mostly into fresh pages. What this
// op returns is the same memory, but counts its users by itself. Where nobody else uses the variable's memory, the op
// behind may take it over, and then the variable changes where it lies; assigning the result costs nothing.
//
// What reads the variable between this op and that assignment may see the new value, or parts of it. So the two belong
// together in one function, with nothing in between. If the op behind fails in the middle, the variable is half new,
// as with TensorFlow's own ops for training.

#include "tensorflow/core/common_runtime/dma_helper.h"
#include "tensorflow/core/framework/allocation_description.pb.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"
#ifndef TK_WITHOUT_XLA
#include "tf2xla.h"
#endif

namespace tftoolkit {
namespace {

using tensorflow::DMAHelper;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorBuffer;

// The memory of another buffer, which lives as long as this does.
class SameMemory : public TensorBuffer {
 public:
  explicit SameMemory(TensorBuffer* owner) : TensorBuffer(owner->data()), owner_(owner) { owner->Ref(); }
  ~SameMemory() override { owner_->Unref(); }

  TensorBuffer* owner() const { return owner_; }
  size_t size() const override { return owner_->size(); }
  TensorBuffer* root_buffer() override { return this; }
  bool GetAllocatedBytes(size_t* bytes) const override { return owner_->GetAllocatedBytes(bytes); }
  tensorflow::AllocatorMemoryType GetMemoryType() const override { return owner_->GetMemoryType(); }
  void FillAllocationDescription(tensorflow::AllocationDescription* description) const override {
    owner_->FillAllocationDescription(description);
  }

 private:
  TensorBuffer* const owner_;
};

class VariableMemory : public OpKernel {
 public:
  explicit VariableMemory(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("dtype", &dtype_));
  }

  void Compute(OpKernelContext* context) override {
    tensorflow::core::RefCountPtr<tensorflow::Var> variable;
    OP_REQUIRES_OK(context, tensorflow::LookupResource(context, tensorflow::HandleFromInput(context, 0), &variable));
    tensorflow::mutex_lock lock(*variable->mu());
    Tensor& value = *variable->tensor();
    OP_REQUIRES(context, variable->is_initialized,
                absl::FailedPreconditionError("VariableMemory: the variable has no value yet"));
    OP_REQUIRES(context, value.dtype() == dtype_,
                absl::InvalidArgumentError("VariableMemory: the variable is of another dtype"));
    if (!value.RefCountIsOne()) {  // a copy is due, for whoever else uses it, or there is no memory at all
      context->set_output(0, value);
      return;
    }
    TensorBuffer* owner = DMAHelper::buffer(&value);
    if (auto* same = dynamic_cast<SameMemory*>(owner)) owner = same->owner();  // else there would be more each time
    auto* const buffer = new SameMemory(owner);
    context->set_output(0, Tensor(dtype_, value.shape(), buffer));
    buffer->Unref();  // the tensor holds it
  }

 private:
  tensorflow::DataType dtype_;
};

absl::Status ShapeOfVariable(tensorflow::shape_inference::InferenceContext* context) {
  const auto* known = context->input_handle_shapes_and_types(0);
  context->set_output(0, known && !known->empty() ? (*known)[0].shape : context->UnknownShape());
  return absl::OkStatus();
}

REGISTER_OP("TfToolkit>VariableMemory")
    .Input("variable: resource")
    .Output("value: dtype")
    .Attr("dtype: type")
    .SetIsStateful()
    .SetShapeFn(ShapeOfVariable);
REGISTER_KERNEL_BUILDER(Name("TfToolkit>VariableMemory").Device(tensorflow::DEVICE_CPU), VariableMemory);
REGISTER_KERNEL_BUILDER(Name("TfToolkit>VariableMemory").Device(tensorflow::DEVICE_GPU).HostMemory("variable"),
                        VariableMemory);

#ifndef TK_WITHOUT_XLA
// XLA knows by itself which memory may be overwritten: there it is a read.
class VariableMemoryInXla : public tensorflow::XlaOpKernel {
 public:
  explicit VariableMemoryInXla(OpKernelConstruction* context) : XlaOpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("dtype", &dtype_));
  }

  void Compile(tensorflow::XlaOpKernelContext* context) override {
    xla::XlaOp value;
    OP_REQUIRES_OK(context, context->ReadVariableInput(0, dtype_, /*shape=*/nullptr, &value));
    context->SetOutput(0, value);
  }

 private:
  tensorflow::DataType dtype_;
};

REGISTER_KERNEL_BUILDER(Name("TfToolkit>VariableMemory").Device("XLA_CPU_JIT"), VariableMemoryInXla);
REGISTER_KERNEL_BUILDER(Name("TfToolkit>VariableMemory").Device("XLA_GPU_JIT"), VariableMemoryInXla);
#endif

}  // namespace
}  // namespace tftoolkit
