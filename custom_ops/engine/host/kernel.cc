// The TensorFlow kernel of every op: checks the inputs against the signature, allocates the outputs, calls the handler.

#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "attributes.h"
#include "compatibility.h"
#include "ffi_api.h"
#include "guard.h"
#include "kept_memory.h"
#include "registry.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/stream_executor/stream.h"

namespace tftoolkit {
namespace {

using tensorflow::DataType;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

XLA_FFI_DataType FfiType(DataType dtype) {
  switch (dtype) {
    case tensorflow::DT_BOOL:
      return XLA_FFI_DataType_PRED;
    case tensorflow::DT_INT8:
      return XLA_FFI_DataType_S8;
    case tensorflow::DT_INT16:
      return XLA_FFI_DataType_S16;
    case tensorflow::DT_INT32:
      return XLA_FFI_DataType_S32;
    case tensorflow::DT_INT64:
      return XLA_FFI_DataType_S64;
    case tensorflow::DT_UINT8:
      return XLA_FFI_DataType_U8;
    case tensorflow::DT_UINT16:
      return XLA_FFI_DataType_U16;
    case tensorflow::DT_UINT32:
      return XLA_FFI_DataType_U32;
    case tensorflow::DT_UINT64:
      return XLA_FFI_DataType_U64;
    case tensorflow::DT_HALF:
      return XLA_FFI_DataType_F16;
    case tensorflow::DT_BFLOAT16:
      return XLA_FFI_DataType_BF16;
    case tensorflow::DT_FLOAT:
      return XLA_FFI_DataType_F32;
    case tensorflow::DT_DOUBLE:
      return XLA_FFI_DataType_F64;
    case tensorflow::DT_COMPLEX64:
      return XLA_FFI_DataType_C64;
    case tensorflow::DT_COMPLEX128:
      return XLA_FFI_DataType_C128;
    default:
      return XLA_FFI_DataType_INVALID;
  }
}

// The buffer descriptors of a call's inputs or outputs. Filled once, then pointed into.
class Buffers {
 public:
  explicit Buffers(size_t count) : buffers_(count), dims_(count), pointers_(count) {}

  void Set(size_t i, const Tensor& tensor) {
    const auto sizes = tensor.shape().dim_sizes();
    dims_[i].assign(sizes.begin(), sizes.end());
    buffers_[i] = {
        XLA_FFI_Buffer_STRUCT_SIZE, nullptr, FfiType(tensor.dtype()), tensor.data(), tensor.dims(), dims_[i].data()};
    pointers_[i] = &buffers_[i];
  }

  void Move(size_t i, void* data) { buffers_[i].data = data; }

  void** pointers() { return pointers_.data(); }

 private:
  absl::InlinedVector<XLA_FFI_Buffer, 6> buffers_;
  absl::InlinedVector<absl::InlinedVector<int64_t, 6>, 6> dims_;
  absl::InlinedVector<void*, 6> pointers_;
};

class FfiKernel : public OpKernel {
 public:
  explicit FfiKernel(OpKernelConstruction* context) : OpKernel(context) {
    const bool cpu = context->device_type() == tensorflow::DEVICE_CPU;
    signature_ = FindSignature(type_string());
    handler_ = FindHandler(type_string(), cpu ? "CPU" : "CUDA");
    OP_REQUIRES(context, signature_ != nullptr && handler_ != nullptr,
                absl::InternalError(absl::StrCat(type_string(), " is not registered with the op host")));
    std::vector<AttributeValue> values;
    OP_REQUIRES_OK(context, ReadAttributes(context, *signature_, &values, &node_));
    attributes_.emplace(*signature_, std::move(values));
    aliases_ = signature_->Aliases(node_.list_length);
    argument_types_.assign(context->num_inputs(), XLA_FFI_ArgType_BUFFER);
    result_types_.assign(context->num_outputs(), XLA_FFI_RetType_BUFFER);
  }

  void Compute(OpKernelContext* context) override {
    std::vector<TensorShape> input_shapes(context->num_inputs());
    Buffers inputs(context->num_inputs());
    for (int i = 0; i < context->num_inputs(); ++i) {
      input_shapes[i] = context->input(i).shape();
      inputs.Set(i, context->input(i));
    }
    std::vector<TensorShape> output_shapes;
    OP_REQUIRES_OK(context, signature_->OutputShapes(input_shapes, node_, &output_shapes));
    Buffers outputs(context->num_outputs());
    bool all_empty = true;
    auto alias = aliases_.begin();
    for (int i = 0; i < context->num_outputs(); ++i) {
      Tensor* output = nullptr;
      if (alias != aliases_.end() && alias->first == i) {
        OP_REQUIRES_OK(context, TakePlace(context, alias->second, i, &output));
        inputs.Set(alias->second, *output);
        ++alias;
      } else {
        OP_REQUIRES_OK(context, Allocate(context, i, output_shapes[i], &output));
      }
      outputs.Set(i, *output);
      all_empty &= output->NumElements() == 0;
    }
    if (all_empty && !signature_->stateful) return;
    const GuardPattern pattern = guard_pattern.load(std::memory_order_relaxed);
    const bool guarded = pattern.output >= 0 && context->op_device_context() == nullptr;
    OP_REQUIRES_OK(context,
                   guarded ? CallGuarded(context, pattern, &inputs, &outputs) : Call(context, &inputs, &outputs));
  }

 private:
  absl::Status Allocate(OpKernelContext* context, int output, const TensorShape& shape, Tensor** tensor) const {
    const DataType dtype = context->expected_output_dtype(output);
    const bool on_host = context->op_device_context() == nullptr;
    if (!on_host || shape.num_elements() * tensorflow::DataTypeSize(dtype) < int64_t{kKeptBytes}) {
      return context->allocate_output(output, shape, tensor);
    }
    Tensor kept(KeptMemory(), dtype, shape);
    if (!kept.IsInitialized()) {
      return absl::ResourceExhaustedError(Failed("no memory for an output of shape ", shape.DebugString()));
    }
    context->set_output(output, std::move(kept));
    *tensor = context->mutable_output(output);
    return absl::OkStatus();
  }

  // The output in the buffer of the input, or, if somebody else still needs the input, in a copy of it. Either way the
  // handler finds the input's values in the output, as it does under XLA.
  absl::Status TakePlace(OpKernelContext* context, int input, int output, Tensor** tensor) const {
    // No copy of the tensor: it would count as somebody who needs it.
    const TensorShape shape = context->input(input).shape();
    const void* from = context->input(input).data();
    const size_t bytes = context->input(input).TotalBytes();
    if (context->forward_input_to_output_with_shape(input, output, shape, tensor)) return absl::OkStatus();
    TF_RETURN_IF_ERROR(Allocate(context, output, shape, tensor));
    if (bytes == 0) return absl::OkStatus();
    if (context->op_device_context() == nullptr) {
      std::memcpy((*tensor)->data(), from, bytes);
      return absl::OkStatus();
    }
    stream_executor::DeviceAddressBase target((*tensor)->data(), bytes);
    const stream_executor::DeviceAddressBase source(const_cast<void*>(from), bytes);
    return context->op_device_context()->stream()->MemcpyD2D(&target, source, bytes);
  }

  // The same on guarded copies of the buffers; see guard.h.
  absl::Status CallGuarded(OpKernelContext* context, const GuardPattern& pattern, Buffers* inputs, Buffers* outputs) {
    std::vector<std::unique_ptr<GuardedBuffer>> input_copies(context->num_inputs());
    std::vector<std::unique_ptr<GuardedBuffer>> output_copies(context->num_outputs());
    std::vector<char> in_place(context->num_inputs(), false);
    for (int i = 0; i < context->num_outputs(); ++i) {
      const Tensor& output = *context->mutable_output(i);
      output_copies[i] = std::make_unique<GuardedBuffer>(output.TotalBytes(), pattern.around);
      std::memset(output_copies[i]->data(), pattern.output, output.TotalBytes());
      outputs->Move(i, output_copies[i]->data());
    }
    for (const auto& [output, input] : aliases_) {
      const Tensor& tensor = *context->mutable_output(output);
      if (tensor.TotalBytes()) std::memcpy(output_copies[output]->data(), tensor.data(), tensor.TotalBytes());
      inputs->Move(input, output_copies[output]->data());
      in_place[input] = true;
    }
    for (int i = 0; i < context->num_inputs(); ++i) {
      if (in_place[i]) continue;
      const Tensor& input = context->input(i);
      input_copies[i] = std::make_unique<GuardedBuffer>(input.TotalBytes(), pattern.Around(i));
      if (input.TotalBytes()) std::memcpy(input_copies[i]->data(), input.data(), input.TotalBytes());
      inputs->Move(i, input_copies[i]->data());
    }
    TF_RETURN_IF_ERROR(Call(context, inputs, outputs));
    for (int i = 0; i < context->num_inputs(); ++i) {
      if (in_place[i]) continue;
      const Tensor& input = context->input(i);
      const bool same = !input.TotalBytes() || !std::memcmp(input_copies[i]->data(), input.data(), input.TotalBytes());
      if (!same || !input_copies[i]->GuardsIntact()) return Overwritten(signature_->inputs, "input", i, !same);
    }
    for (int i = 0; i < context->num_outputs(); ++i) {
      if (!output_copies[i]->GuardsIntact()) return Overwritten(signature_->outputs, "output", i, false);
      const Tensor& output = *context->mutable_output(i);
      if (output.TotalBytes()) std::memcpy(output.data(), output_copies[i]->data(), output.TotalBytes());
    }
    return absl::OkStatus();
  }

  absl::Status Overwritten(const std::vector<Argument>& arguments, const char* kind, int flat, bool inside) const {
    int i = 0;  // the argument that the flat index belongs to
    for (int left = flat; left >= (arguments[i].variadic ? node_.list_length : 1); ++i) {
      left -= arguments[i].variadic ? node_.list_length : 1;
    }
    return absl::DataLossError(absl::StrCat(type_string(), ": the kernel writes ", inside ? "into " : "outside of ",
                                            kind, " ", arguments[i].name));
  }

  absl::Status Call(OpKernelContext* context, Buffers* inputs, Buffers* outputs) {
    XLA_FFI_ExecutionContext execution{context, {}};
    XLA_FFI_CallFrame frame{};
    frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
    frame.api = FfiApi();
    frame.ctx = &execution;
    frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
    frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, context->num_inputs(), argument_types_.data(), inputs->pointers()};
    frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, context->num_outputs(), result_types_.data(), outputs->pointers()};
    frame.attrs = attributes_->Get();
    XLA_FFI_Error* error = nullptr;
    try {
      error = handler_(&frame);
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(Failed("no memory for the kernel's intermediate results"));
    } catch (const std::exception& exception) {
      return absl::UnknownError(Failed("the kernel threw: ", exception.what()));
    } catch (...) {
      return absl::UnknownError(Failed("the kernel threw an exception"));
    }
    if (error == nullptr) return absl::OkStatus();
    const absl::Status status(static_cast<absl::StatusCode>(error->code), Explain(error->message));
    delete error;
    return status;
  }

  std::string Failed(absl::string_view what, absl::string_view which = "") const {
    return absl::StrCat(type_string(), ": ", what, which, " [tftoolkit: docs/errors.md#op-failed]");
  }

  // Names the op, and the schema where Bind() does not fit it. The message ends with its place in docs/errors.md by
  // tftoolkit/op.h.
  std::string Explain(absl::string_view message) const {
    if (!absl::ConsumePrefix(&message, "Bind() and the op's schema disagree: ")) {
      return absl::StrCat(type_string(), ": ", message);
    }
    return absl::StrCat(type_string(), ": Bind() and the schema ", signature_->text, " disagree: ", message);
  }

  const Signature* signature_ = nullptr;
  XLA_FFI_Handler* handler_ = nullptr;
  NodeValues node_;
  std::vector<std::pair<int, int>> aliases_;
  std::optional<FfiAttributes> attributes_;
  std::vector<XLA_FFI_ArgType> argument_types_;
  std::vector<XLA_FFI_RetType> result_types_;
};

}  // namespace

OpKernel* MakeKernel(OpKernelConstruction* context) { return new FfiKernel(context); }

}  // namespace tftoolkit
