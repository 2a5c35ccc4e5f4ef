// Declares compiled ops: one schema per op, one XLA FFI handler per platform. No TensorFlow header is involved.
//
//   static ffi::Error Scale(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y, float alpha) { ... }
//   XLA_FFI_DEFINE_HANDLER(ScaleCpu, Scale,
//                          ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>().Attr<float>("alpha"));
//   TK_OP(Scale, "(x: f32[...], *, alpha: f32 = 1.0) -> (y: f32[...])");
//   TK_KERNEL(Scale, CPU, ScaleCpu);
//
// The declarations of all translation units of a library form two linked lists that tk_library() hands out. They are
// plain C structs because two parties read them that know nothing of this header's C++: the Python package (ctypes)
// and, through it, the op host.

#ifndef TFTOOLKIT_OP_H_
#define TFTOOLKIT_OP_H_

#include <cstdint>
#include <exception>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// Changes whenever a struct below does; the loader refuses libraries with another number.
#define TK_LIBRARY_ABI 1

#define TK_EXPORT __attribute__((visibility("default")))
#define TK_HIDDEN __attribute__((visibility("hidden")))

extern "C" {

struct TK_OpDeclaration {
  const char* name;    // CamelCase
  const char* schema;  // the grammar is described in custom_ops/engine/schema.py
  const char* file;
  int32_t line;
  const TK_OpDeclaration* next;
};

struct TK_KernelDeclaration {
  const char* op;
  const char* platform;  // "CPU" or "CUDA"
  XLA_FFI_Handler* handler;
  const char* file;
  int32_t line;
  const TK_KernelDeclaration* next;
};

struct TK_Library {
  int32_t abi;
  int32_t ffi_major;
  int32_t ffi_minor;
  const TK_OpDeclaration* ops;
  const TK_KernelDeclaration* kernels;
};

}  // extern "C"

namespace tftoolkit {

// Hidden: as an ordinary inline variable it would be one and the same object in every op library of the process.
TK_HIDDEN inline TK_Library library = {TK_LIBRARY_ABI, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR, nullptr, nullptr};

struct TK_HIDDEN DeclareOp : TK_OpDeclaration {
  DeclareOp(const char* name, const char* schema, const char* file, int32_t line)
      : TK_OpDeclaration{name, schema, file, line, library.ops} {
    library.ops = this;
  }
};

struct TK_HIDDEN DeclareKernel : TK_KernelDeclaration {
  DeclareKernel(const char* op, const char* platform, XLA_FFI_Handler* handler, const char* file, int32_t line)
      : TK_KernelDeclaration{op, platform, handler, file, line, library.kernels} {
    library.kernels = this;
  }
};

// An error in the host's form. Its message ends with its place in docs/errors.md, as those of the Python package do.
TK_HIDDEN inline XLA_FFI_Error* CreateError(const XLA_FFI_Api* api, XLA_FFI_Error_Code code, std::string message,
                                            const char* place = nullptr) {
  const bool of_input = code == XLA_FFI_Error_Code_INVALID_ARGUMENT || code == XLA_FFI_Error_Code_OUT_OF_RANGE;
  if (place == nullptr) {
    place = of_input ? "[tftoolkit: docs/errors.md#op-input]" : "[tftoolkit: docs/errors.md#op-failed]";
  }
  message += message.find('\n') == std::string::npos ? ' ' : '\n';
  message += place;
  XLA_FFI_Error_Create_Args args{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message.c_str(), code};
  return api->XLA_FFI_Error_Create(&args);
}

// The header's own error where a call is not what Bind() expects begins with the stage; it gets its place here.
TK_HIDDEN inline XLA_FFI_Error* Explained(const XLA_FFI_Api* api, XLA_FFI_Error* error) {
  if (error == nullptr) return nullptr;
  XLA_FFI_Error_GetMessage_Args said{XLA_FFI_Error_GetMessage_Args_STRUCT_SIZE, nullptr, error, nullptr};
  api->XLA_FFI_Error_GetMessage(&said);
  const std::string message = said.message, stage = "[execute] ";
  if (message.compare(0, stage.size(), stage) != 0) return error;
  XLA_FFI_Error_Destroy_Args args{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
  api->XLA_FFI_Error_Destroy(&args);
  return CreateError(api, XLA_FFI_Error_Code_INVALID_ARGUMENT,
                     "Bind() and the op's schema disagree: " + message.substr(stage.size()),
                     "[tftoolkit: docs/errors.md#op-declaration]");
}

// Calls a handler and makes an error of what it throws. XLA catches `std::exception` only: anything else would end the
// process.
TK_HIDDEN inline XLA_FFI_Error* CallHandler(XLA_FFI_Handler* handler, XLA_FFI_CallFrame* frame) {
#ifdef __cpp_exceptions
  std::string message = "the kernel threw an exception";
  try {
    return Explained(frame->api, handler(frame));
  } catch (const std::exception& exception) {
    message = std::string("the kernel threw: ") + exception.what();
  } catch (...) {
  }
  return CreateError(frame->api, XLA_FFI_Error_Code_UNKNOWN, message);
#else
  return Explained(frame->api, handler(frame));
#endif
}

}  // namespace tftoolkit

// XLA's own for every stage, of a handler's errors, is less special than this one.
template <>
struct xla::ffi::ResultEncoding<xla::ffi::ExecutionStage::kExecute, xla::ffi::Error> {
  static XLA_FFI_Error* Encode(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext*, const Error& error) {
    if (error.success()) return nullptr;
    return ::tftoolkit::CreateError(api, static_cast<XLA_FFI_Error_Code>(*error.errc()), error.message());
  }
};

// `used`: nothing inside the library calls it.
extern "C" TK_EXPORT __attribute__((used)) inline const TK_Library* tk_library() { return &tftoolkit::library; }

#define TK_OP(name, schema) static const ::tftoolkit::DeclareOp tk_op_##name(#name, schema, __FILE__, __LINE__)

#define TK_KERNEL(op, platform, handler)                                                                           \
  static const ::tftoolkit::DeclareKernel tk_kernel_##op##_##platform(                                             \
      #op, #platform, [](XLA_FFI_CallFrame* frame) { return ::tftoolkit::CallHandler(handler, frame); }, __FILE__, \
      __LINE__)

#endif  // TFTOOLKIT_OP_H_
