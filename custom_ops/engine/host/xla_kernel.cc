// jit_compile=True: every op becomes a typed-FFI custom call, and XLA calls the handler itself. TensorFlow versions
// whose headers are not complete or whose XLA is too old get without_xla.cc in its place.

#ifndef TK_WITHOUT_XLA

#include <vector>

#include "absl/strings/str_cat.h"
#include "attributes.h"
#include "compatibility.h"
#include "registry.h"
#include "tensorflow/compiler/tf2xla/shape_util.h"
#include "tf2xla.h"
#include "xla/ffi/api/c_api.h"
#include "xla/hlo/builder/xla_builder.h"
#include "xla/layout_util.h"
#include "xla/shape_util.h"

namespace xla::ffi {
// Declared in xla/ffi/ffi.h, which must not be mixed with the public API's headers.
const XLA_FFI_Api* GetXlaFfiApi();
}  // namespace xla::ffi

namespace tftoolkit {
namespace {

using tensorflow::DataType;
using tensorflow::OpKernelConstruction;
using tensorflow::TensorShape;
using tensorflow::XlaOpKernel;
using tensorflow::XlaOpKernelContext;

absl::Status RowMajor(DataType dtype, const TensorShape& shape, xla::Shape* result) {
  TF_RETURN_IF_ERROR(tensorflow::TensorShapeToXLAShape(dtype, shape, result));
  xla::LayoutUtil::SetToDefaultLayout(result);
  return absl::OkStatus();
}

absl::Status StaticShape(XlaOpKernelContext* context, int input, TensorShape* shape) {
  TF_ASSIGN_OR_RETURN(const xla::Shape xla_shape, context->InputXlaShape(input));
  if (!xla_shape.is_static()) {
    return absl::UnimplementedError(
        absl::StrCat(context->op_kernel().type_string(), ": input ", input,
                     " has a dynamic size inside this XLA program: ", xla_shape.ToString()));
  }
  return tensorflow::XLAShapeToTensorShape(xla_shape, shape);
}

class XlaFfiKernel : public XlaOpKernel {
 public:
  explicit XlaFfiKernel(OpKernelConstruction* context) : XlaOpKernel(context) {
    signature_ = FindSignature(type_string());
    OP_REQUIRES(context, signature_ != nullptr,
                absl::InternalError(absl::StrCat(type_string(), " is not registered with the op host")));
    std::vector<AttributeValue> values;
    OP_REQUIRES_OK(context, ReadAttributes(context, *signature_, &values, &node_));
    attributes_ = MlirDictionary(*signature_, values);
  }

  void Compile(XlaOpKernelContext* context) override {
    std::vector<xla::XlaOp> operands;
    std::vector<TensorShape> input_shapes(context->num_inputs());
    std::vector<xla::Shape> operand_layouts(context->num_inputs());
    for (int i = 0; i < context->num_inputs(); ++i) {
      operands.push_back(context->Input(i));
      OP_REQUIRES_OK(context, StaticShape(context, i, &input_shapes[i]));
      OP_REQUIRES_OK(context, RowMajor(context->input_type(i), input_shapes[i], &operand_layouts[i]));
    }
    std::vector<TensorShape> output_shapes;
    OP_REQUIRES_OK(context, signature_->OutputShapes(input_shapes, node_, &output_shapes));
    std::vector<xla::Shape> results(output_shapes.size());
    for (size_t i = 0; i < results.size(); ++i) {
      OP_REQUIRES_OK(context, RowMajor(context->expected_output_dtype(i), output_shapes[i], &results[i]));
    }
    std::vector<std::pair<xla::ShapeIndex, std::pair<int64_t, xla::ShapeIndex>>> aliases;
    for (const auto& [output, input] : signature_->Aliases(node_.list_length)) {
      auto& alias = aliases.emplace_back();
      alias.first.push_back(output);
      alias.second.first = input;
    }
    // Layouts are fixed: handlers read dense row-major buffers.
    const xla::XlaOp call = xla::CustomCallWithLayout(
        context->builder(), type_string(), operands, xla::ShapeUtil::MakeTupleShape(results), operand_layouts,
        attributes_, /*has_side_effect=*/signature_->stateful, aliases, /*literal=*/nullptr,
        xla::CustomCallSchedule::SCHEDULE_NONE, xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
    for (size_t i = 0; i < results.size(); ++i) {
      context->SetOutput(static_cast<int>(i), xla::GetTupleElement(call, static_cast<int64_t>(i)));
    }
  }

 private:
  const Signature* signature_ = nullptr;
  NodeValues node_;
  std::string attributes_;
};

}  // namespace

tensorflow::OpKernel* MakeXlaKernel(OpKernelConstruction* context) { return new XlaFfiKernel(context); }

absl::Status RegisterWithXla(const std::string& op_type, const std::string& platform, XLA_FFI_Handler* handler) {
  const XLA_FFI_Api* api = xla::ffi::GetXlaFfiApi();
  const std::string xla_platform = platform == "CPU" ? "Host" : platform;
  XLA_FFI_Handler_Register_Args args{};
  args.struct_size = XLA_FFI_Handler_Register_Args_STRUCT_SIZE;
  args.name = {op_type.data(), op_type.size()};
  args.platform = {xla_platform.data(), xla_platform.size()};
  args.bundle.execute = handler;
  XLA_FFI_Error* error = api->XLA_FFI_Handler_Register(&args);
  if (error == nullptr) return absl::OkStatus();
  XLA_FFI_Error_GetMessage_Args message{XLA_FFI_Error_GetMessage_Args_STRUCT_SIZE, nullptr, error, nullptr};
  api->XLA_FFI_Error_GetMessage(&message);
  const absl::Status status =
      absl::InternalError(absl::StrCat("XLA refused the handler of ", op_type, ": ", message.message));
  XLA_FFI_Error_Destroy_Args destroy{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
  api->XLA_FFI_Error_Destroy(&destroy);
  return status;
}

}  // namespace tftoolkit

#endif  // TK_WITHOUT_XLA
