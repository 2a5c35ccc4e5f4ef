// What differs between the TensorFlow versions that the host is built for, 2.18 to 2.21; the builder defines
// TK_TENSORFLOW_MINOR. Comes before the headers that it completes.

#ifndef TFTOOLKIT_HOST_COMPATIBILITY_H_
#define TFTOOLKIT_HOST_COMPATIBILITY_H_

#include <cstddef>
#include <cstdint>

#if TK_TENSORFLOW_MINOR == 19
// This header needs LLVM's, which the wheel lacks. XLA's headers only hand the class through.
#define XLA_STREAM_EXECUTOR_GPU_TMA_METADATA_H_
namespace stream_executor::gpu {
class TmaDescriptor {};
}  // namespace stream_executor::gpu
#endif

#include "xla/ffi/api/c_api.h"
#include "xla/stream_executor/stream.h"

#if TK_TENSORFLOW_MINOR < 21
// Renamed since.
#define XLA_FFI_Type_Register XLA_FFI_TypeId_Register
#define XLA_FFI_Type_Register_Args XLA_FFI_TypeId_Register_Args
namespace stream_executor {
using DeviceAddressBase = DeviceMemoryBase;
}  // namespace stream_executor
#endif

#if TK_TENSORFLOW_MINOR < 20
// 2.18 and 2.19 ship no ffi.h: handlers are compiled against that of 2.20 or newer and expect its table of functions,
// of which these wheels' c_api.h lacks one (2.19) or three (2.18, one of them in the middle).
#if TK_TENSORFLOW_MINOR < 19
struct XLA_FFI_ThreadPool_NumThreads_Args {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  XLA_FFI_ExecutionContext* ctx;
  int64_t* num_threads;
};

struct XLA_FFI_RunId_Get_Args {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  XLA_FFI_ExecutionContext* ctx;
  int64_t run_id;
};
#endif

struct XLA_FFI_DeviceOrdinal_Get_Args {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  XLA_FFI_ExecutionContext* ctx;
  int32_t device_ordinal;
};

namespace tftoolkit {

struct HandlerApi {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  XLA_FFI_Api_Version api_version;
  XLA_FFI_InternalApi* internal_api;
  ::XLA_FFI_Error_Create* XLA_FFI_Error_Create;
  ::XLA_FFI_Error_GetMessage* XLA_FFI_Error_GetMessage;
  ::XLA_FFI_Error_Destroy* XLA_FFI_Error_Destroy;
  ::XLA_FFI_Handler_Register* XLA_FFI_Handler_Register;
  ::XLA_FFI_Stream_Get* XLA_FFI_Stream_Get;
  ::XLA_FFI_TypeId_Register* XLA_FFI_TypeId_Register;
  ::XLA_FFI_ExecutionContext_Get* XLA_FFI_ExecutionContext_Get;
  ::XLA_FFI_State_Set* XLA_FFI_State_Set;
  ::XLA_FFI_State_Get* XLA_FFI_State_Get;
  ::XLA_FFI_DeviceMemory_Allocate* XLA_FFI_DeviceMemory_Allocate;
  ::XLA_FFI_DeviceMemory_Free* XLA_FFI_DeviceMemory_Free;
  ::XLA_FFI_ThreadPool_Schedule* XLA_FFI_ThreadPool_Schedule;
  XLA_FFI_Error* (*XLA_FFI_ThreadPool_NumThreads)(XLA_FFI_ThreadPool_NumThreads_Args*);
  ::XLA_FFI_Future_Create* XLA_FFI_Future_Create;
  ::XLA_FFI_Future_SetAvailable* XLA_FFI_Future_SetAvailable;
  ::XLA_FFI_Future_SetError* XLA_FFI_Future_SetError;
  XLA_FFI_Error* (*XLA_FFI_RunId_Get)(XLA_FFI_RunId_Get_Args*);
  XLA_FFI_Error* (*XLA_FFI_DeviceOrdinal_Get)(XLA_FFI_DeviceOrdinal_Get_Args*);
};

}  // namespace tftoolkit
#else
namespace tftoolkit {
using HandlerApi = XLA_FFI_Api;
}  // namespace tftoolkit
#endif

#endif  // TFTOOLKIT_HOST_COMPATIBILITY_H_
