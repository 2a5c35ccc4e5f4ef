#include "ffi_api.h"

#include <cstdint>

#include "compatibility.h"
#include "xla/stream_executor/stream.h"

namespace tftoolkit {
namespace {

XLA_FFI_Error* CreateError(XLA_FFI_Error_Create_Args* args) {
  return new XLA_FFI_Error{args->errc, args->message ? args->message : ""};
}

void ErrorMessage(XLA_FFI_Error_GetMessage_Args* args) { args->message = args->error->message.c_str(); }

void DestroyError(XLA_FFI_Error_Destroy_Args* args) { delete args->error; }

XLA_FFI_Error* GetStream(XLA_FFI_Stream_Get_Args* args) {
  auto* context = args->ctx->kernel->op_device_context();
  if (context == nullptr) return new XLA_FFI_Error{XLA_FFI_Error_Code_UNAVAILABLE, "a CPU kernel has no stream"};
  args->stream = context->stream()->platform_specific_handle().stream;
  return nullptr;
}

XLA_FFI_Error* AllocateMemory(XLA_FFI_DeviceMemory_Allocate_Args* args) {
  constexpr size_t kAlignment = 64;  // what TensorFlow's allocators promise
  if (args->alignment > kAlignment) {
    return new XLA_FFI_Error{XLA_FFI_Error_Code_INVALID_ARGUMENT, "scratch memory is aligned to 64 bytes at most"};
  }
  tensorflow::Tensor memory;
  const tensorflow::TensorShape shape({static_cast<int64_t>(args->size)});
  const absl::Status status = args->ctx->kernel->allocate_temp(tensorflow::DT_UINT8, shape, &memory);
  if (!status.ok()) return new XLA_FFI_Error{XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, std::string(status.message())};
  args->data = memory.data();
  args->ctx->scratch.push_back(memory);
  return nullptr;
}

XLA_FFI_Error* FreeMemory(XLA_FFI_DeviceMemory_Free_Args*) { return nullptr; }  // freed with the call

tensorflow::thread::ThreadPool* IntraOpPool(XLA_FFI_ExecutionContext* ctx) {
  return ctx->kernel->device()->tensorflow_cpu_worker_threads()->workers;
}

XLA_FFI_Error* ScheduleTask(XLA_FFI_ThreadPool_Schedule_Args* args) {
  IntraOpPool(args->ctx)->Schedule([task = args->task, data = args->data] { task(data); });
  return nullptr;
}

XLA_FFI_Error* CountThreads(XLA_FFI_ThreadPool_NumThreads_Args* args) {
  *args->num_threads = IntraOpPool(args->ctx)->NumThreads();
  return nullptr;
}

XLA_FFI_Error* GetDeviceOrdinal(XLA_FFI_DeviceOrdinal_Get_Args* args) {
  const auto* info = args->ctx->kernel->device()->tensorflow_accelerator_device_info();
  args->device_ordinal = info ? info->gpu_id : 0;
  return nullptr;
}

template <typename Args>
XLA_FFI_Error* Unimplemented(Args*) {
  return new XLA_FFI_Error{XLA_FFI_Error_Code_UNIMPLEMENTED,
                           "this XLA FFI service exists inside XLA programs only, not in a TensorFlow kernel"};
}

HandlerApi MakeApi() {
  HandlerApi api{};
  api.struct_size = sizeof api;
  api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
  api.XLA_FFI_Error_Create = CreateError;
  api.XLA_FFI_Error_GetMessage = ErrorMessage;
  api.XLA_FFI_Error_Destroy = DestroyError;
  api.XLA_FFI_Handler_Register = Unimplemented<XLA_FFI_Handler_Register_Args>;
  api.XLA_FFI_Stream_Get = GetStream;
  api.XLA_FFI_Type_Register = Unimplemented<XLA_FFI_Type_Register_Args>;
  api.XLA_FFI_ExecutionContext_Get = Unimplemented<XLA_FFI_ExecutionContext_Get_Args>;
  api.XLA_FFI_State_Set = Unimplemented<XLA_FFI_State_Set_Args>;
  api.XLA_FFI_State_Get = Unimplemented<XLA_FFI_State_Get_Args>;
  api.XLA_FFI_DeviceMemory_Allocate = AllocateMemory;
  api.XLA_FFI_DeviceMemory_Free = FreeMemory;
  api.XLA_FFI_ThreadPool_Schedule = ScheduleTask;
  api.XLA_FFI_ThreadPool_NumThreads = CountThreads;
  api.XLA_FFI_Future_Create = Unimplemented<XLA_FFI_Future_Create_Args>;
  api.XLA_FFI_Future_SetAvailable = Unimplemented<XLA_FFI_Future_SetAvailable_Args>;
  api.XLA_FFI_Future_SetError = Unimplemented<XLA_FFI_Future_SetError_Args>;
  api.XLA_FFI_RunId_Get = Unimplemented<XLA_FFI_RunId_Get_Args>;
  api.XLA_FFI_DeviceOrdinal_Get = GetDeviceOrdinal;
  return api;
}

}  // namespace

const XLA_FFI_Api* FfiApi() {
  static const HandlerApi api = MakeApi();
  return reinterpret_cast<const XLA_FFI_Api*>(&api);
}

}  // namespace tftoolkit
