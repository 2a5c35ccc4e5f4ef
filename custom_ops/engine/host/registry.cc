#include "registry.h"

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ffi_api.h"
#include "tensorflow/core/framework/kernel_def_builder.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_def.pb.h"

namespace tftoolkit {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<Signature>> signatures;
  std::map<std::pair<std::string, std::string>, XLA_FFI_Handler*> handlers;
};

Registry& GlobalRegistry() {
  static Registry* registry = new Registry;
  return *registry;
}

absl::Status RegisterOp(const std::string& op_def_bytes, const std::string& text, const std::string& wire) {
  tensorflow::OpDef op_def;
  if (!op_def.ParseFromString(op_def_bytes)) return absl::InternalError("cannot parse the OpDef");
  auto signature = std::make_unique<Signature>();
  TF_RETURN_IF_ERROR(ParseSignature(op_def.name(), text, wire, signature.get()));
  signature->stateful = op_def.is_stateful();
  Registry& registry = GlobalRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  // TensorFlow would end the process over a second registration.
  if (registry.signatures.count(op_def.name()) || tensorflow::OpRegistry::Global()->LookUp(op_def.name())) {
    return absl::AlreadyExistsError(absl::StrCat("an op named ", op_def.name(), " is already registered"));
  }
  const Signature* kept = (registry.signatures[op_def.name()] = std::move(signature)).get();
  tensorflow::OpRegistry::Global()->Register([op_def, kept](tensorflow::OpRegistrationData* data) {
    data->op_def = op_def;
    data->shape_inference_fn = [kept](tensorflow::shape_inference::InferenceContext* context) {
      return kept->InferShapes(context);
    };
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

void RegisterTensorFlowKernel(const std::string& op_type, const char* device, const char* class_name,
                              tensorflow::OpKernel* (*make)(tensorflow::OpKernelConstruction*)) {
  const tensorflow::KernelDef* def = tensorflow::KernelDefBuilder(op_type.c_str()).Device(device).Build();
  tensorflow::kernel_factory::OpKernelRegistrar registrar(def, class_name, make);
}

// Asks the handler which FFI version it was compiled for, as XLA does.
absl::Status CheckFfiVersion(XLA_FFI_Handler* handler) {
  XLA_FFI_Metadata metadata{};
  metadata.struct_size = XLA_FFI_Metadata_STRUCT_SIZE;
  metadata.api_version.struct_size = XLA_FFI_Api_Version_STRUCT_SIZE;
  XLA_FFI_Metadata_Extension extension{};
  extension.extension_base = {sizeof extension, XLA_FFI_Extension_Metadata, nullptr};
  extension.metadata = &metadata;
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = FfiApi();
  frame.extension_start = &extension.extension_base;
  // A handler of a newer version may refuse the question itself.
  XLA_FFI_Error* error = handler(&frame);
  const XLA_FFI_Api_Version& version = metadata.api_version;
  const bool fits = version.major_version == XLA_FFI_API_MAJOR && version.minor_version <= XLA_FFI_API_MINOR;
  if (error == nullptr && fits) return absl::OkStatus();
  delete error;
  return absl::FailedPreconditionError(absl::StrCat(
      "the kernel was compiled against headers of XLA FFI that are newer than this TensorFlow's (", XLA_FFI_API_MAJOR,
      ".", XLA_FFI_API_MINOR, "). Compile it against older ones: set TFTOOLKIT_FFI_INCLUDE to a folder that has them"));
}

absl::Status RegisterKernel(const std::string& op_type, const std::string& platform, XLA_FFI_Handler* handler) {
  TF_RETURN_IF_ERROR(CheckFfiVersion(handler));
  Registry& registry = GlobalRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  if (!registry.signatures.count(op_type)) return absl::NotFoundError(absl::StrCat("no op ", op_type));
  if (!registry.handlers.emplace(std::make_pair(op_type, platform), handler).second) {
    return absl::AlreadyExistsError(absl::StrCat(op_type, " already has a kernel for ", platform));
  }
  TF_RETURN_IF_ERROR(RegisterWithXla(op_type, platform, handler));
  const bool cpu = platform == "CPU";
  RegisterTensorFlowKernel(op_type, cpu ? "CPU" : "GPU", "tftoolkit::FfiKernel", MakeKernel);
  // Registered for the JIT device itself: REGISTER_XLA_OP has no effect once TensorFlow's context exists.
  RegisterTensorFlowKernel(op_type, cpu ? "XLA_CPU_JIT" : "XLA_GPU_JIT", "tftoolkit::XlaFfiKernel", MakeXlaKernel);
  return absl::OkStatus();
}

// The C interface reports errors as text that the caller frees; nullptr is success.
char* ErrorText(const absl::Status& status) {
  return status.ok() ? nullptr : strdup(std::string(status.message()).c_str());
}

}  // namespace

const Signature* FindSignature(const std::string& op_type) {
  Registry& registry = GlobalRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  auto found = registry.signatures.find(op_type);
  return found == registry.signatures.end() ? nullptr : found->second.get();
}

XLA_FFI_Handler* FindHandler(const std::string& op_type, const std::string& platform) {
  Registry& registry = GlobalRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  auto found = registry.handlers.find({op_type, platform});
  return found == registry.handlers.end() ? nullptr : found->second;
}

}  // namespace tftoolkit

extern "C" {

__attribute__((visibility("default"))) char* tk_register_op(const char* op_def, size_t op_def_size, const char* text,
                                                            const char* wire) {
  return tftoolkit::ErrorText(tftoolkit::RegisterOp(std::string(op_def, op_def_size), text, wire));
}

__attribute__((visibility("default"))) char* tk_register_kernel(const char* op_type, const char* platform,
                                                                void* handler) {
  return tftoolkit::ErrorText(
      tftoolkit::RegisterKernel(op_type, platform, reinterpret_cast<XLA_FFI_Handler*>(handler)));
}

__attribute__((visibility("default"))) void tk_free(char* text) { free(text); }

}  // extern "C"
