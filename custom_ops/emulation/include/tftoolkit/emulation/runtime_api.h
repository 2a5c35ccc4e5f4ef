// The functions of CUDA's runtime that launching code calls. A launch runs at once, so streams and events mean nothing.

#ifndef TFTOOLKIT_EMULATION_RUNTIME_API_H_
#define TFTOOLKIT_EMULATION_RUNTIME_API_H_

#include <cstddef>

#include "tftoolkit/emulation/device.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

namespace tftoolkit::emulation {

// The first finding of this call's launches, or the error of the last one. Last: forgets it.
cudaError_t PeekAtLastError();
cudaError_t LastError();
const char* ErrorText(cudaError_t error);
cudaError_t AllowDynamicSharedMemory(size_t bytes);
cudaError_t DeviceAttribute(int* value, cudaDeviceAttr attribute);
void FillMemory(void* memory, int byte, size_t size);
void CopyMemory(void* to, const void* from, size_t size, cudaMemcpyKind kind);  // default: both on the device

}  // namespace tftoolkit::emulation

inline cudaError_t cudaGetLastError() { return ::tftoolkit::emulation::LastError(); }
inline cudaError_t cudaPeekAtLastError() { return ::tftoolkit::emulation::PeekAtLastError(); }
inline const char* cudaGetErrorString(cudaError_t error) { return ::tftoolkit::emulation::ErrorText(error); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return ::tftoolkit::emulation::PeekAtLastError(); }
inline cudaError_t cudaDeviceSynchronize() { return ::tftoolkit::emulation::PeekAtLastError(); }

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return ::tftoolkit::emulation::DeviceAttribute(value, attribute);
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return ::tftoolkit::emulation::AllowDynamicSharedMemory(static_cast<size_t>(value));
}

inline cudaError_t cudaMemsetAsync(void* memory, int byte, size_t size, cudaStream_t = nullptr) {
  ::tftoolkit::emulation::FillMemory(memory, byte, size);
  return ::tftoolkit::emulation::PeekAtLastError();
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
  ::tftoolkit::emulation::CopyMemory(to, from, size, kind);
  return ::tftoolkit::emulation::PeekAtLastError();
}

#endif  // TFTOOLKIT_EMULATION_RUNTIME_API_H_
