// Included before everything else of an emulated .cu file: its CUDA kernels are registered as the CPU's.

#ifndef TFTOOLKIT_EMULATION_KERNEL_H_
#define TFTOOLKIT_EMULATION_KERNEL_H_

#include "tftoolkit/op.h"

// The linker's names for the two ends of this library.
extern "C" TK_HIDDEN char __ehdr_start;
extern "C" TK_HIDDEN char _end;

namespace tftoolkit::emulation {

// A library of emulated ops: where its code and variables lie, and what it declares.
struct Program {
  const char* begin;
  const char* end;
  const TK_Library* library;
};

// Calls the handler of op `op` on guarded copies of its buffers, with an api table that emulates the device's services.
XLA_FFI_Error* CallOnDevice(const Program& program, const char* op, XLA_FFI_Handler* handler, XLA_FFI_CallFrame* frame);

TK_HIDDEN inline XLA_FFI_Error* CallKernel(const char* op, XLA_FFI_Handler* handler, XLA_FFI_CallFrame* frame) {
  return CallOnDevice({&__ehdr_start, &_end, tk_library()}, op, handler, frame);
}

}  // namespace tftoolkit::emulation

#undef TK_KERNEL
#define TK_KERNEL(op, platform, handler)                                                                            \
  static const ::tftoolkit::DeclareKernel tk_kernel_##op##_##platform(                                              \
      #op, "CPU", [](XLA_FFI_CallFrame* frame) { return ::tftoolkit::emulation::CallKernel(#op, handler, frame); }, \
      __FILE__, __LINE__)

#endif  // TFTOOLKIT_EMULATION_KERNEL_H_
