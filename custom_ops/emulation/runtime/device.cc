// The device functions of tftoolkit/emulation/device.h, of one thread: indices, memory, atomics, fences.

#include "tftoolkit/emulation/device.h"

#include <cstring>

#include "machine.h"
#include "report.h"
#include "tftoolkit/emulation/small_floats.h"
#include "tftoolkit/float_types.h"

namespace tftoolkit::emulation {
namespace {

// Device functions called by host code, such as an index read outside of a kernel, have no answer.
Machine* Device() { return Machine::Current(); }
bool OnDevice() { return Device() != nullptr && Device()->thread() != nullptr; }

}  // namespace

uint3 ThreadIndex() { return OnDevice() ? Device()->thread()->index : uint3{}; }
uint3 BlockIndex() { return OnDevice() ? Device()->block() : uint3{}; }
dim3 BlockSize() { return OnDevice() ? Device()->launch().block : dim3(); }
dim3 GridSize() { return OnDevice() ? Device()->launch().grid : dim3(); }
int LaneIndex() { return OnDevice() ? Device()->thread()->number % kWarp : 0; }

void* SharedMemory(const void* site, const char* name, size_t size, size_t alignment) {
  return OnDevice() ? Device()->Shared(site, name, size, alignment) : nullptr;
}

void* DynamicSharedMemory(size_t alignment) { return OnDevice() ? Device()->DynamicShared(alignment) : nullptr; }

void CheckAligned(const void* address, size_t alignment) {
  if (OnDevice()) Device()->CheckAligned(address, alignment, __builtin_return_address(0));
}

float FromHalf(uint16_t bits) { return Load(Half{bits}); }
uint16_t ToHalf(float value) { return Store<Half>(value).bits; }
float FromBFloat16(uint16_t bits) { return Load(BFloat16{bits}); }
uint16_t ToBFloat16(float value) { return Store<BFloat16>(value).bits; }

void Fence() {
  if (OnDevice()) Device()->thread()->fenced = true;
}

void AtomicLoad(const void* address, void* value, size_t size) {
  if (OnDevice()) {
    const void* pc = __builtin_return_address(0);
    Device()->CheckAligned(address, size, pc);
    Device()->Access(address, size, Kind::kAtomicLoad, pc);
    Device()->memory().Acquire(address, Device()->Acting(pc).now.block);
  }
  std::memcpy(value, address, size);
}

void AtomicStore(void* address, const void* value, size_t size) {
  if (OnDevice()) {
    const void* pc = __builtin_return_address(0);
    Device()->Access(address, size, Kind::kAtomicStore, pc);
    if (Device()->thread()->fenced) Device()->memory().Release(address, Device()->Acting(pc).now.block);
  }
  std::memcpy(address, value, size);
}

void Trap(const char* what, Place place) {
  if (!OnDevice()) __builtin_trap();
  Device()->FindAt(what, place);
}

int64_t LimitBlocks(int64_t blocks) {
  const int64_t most = Device() == nullptr ? 0 : Device()->settings.max_blocks;
  return most > 0 && most < blocks ? most : blocks;
}

void Run(const Launched& launch, void (*body)(void*), void* data) {
  if (Device() != nullptr) Device()->Run(launch, body, data);
}

cudaError_t PeekAtLastError() { return Device() == nullptr ? cudaSuccess : Device()->error; }
// A finding stays: as on a GPU, nothing works after a failed kernel.
cudaError_t LastError() { return PeekAtLastError(); }

const char* ErrorText(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  return Device() == nullptr || Device()->finding.empty() ? "invalid argument" : Device()->finding.c_str();
}

cudaError_t AllowDynamicSharedMemory(size_t bytes) {
  constexpr size_t kMost = 163 << 10;  // of sm_80, the oldest that kernels are compiled for
  if (bytes > kMost) return cudaErrorInvalidValue;
  if (Device() != nullptr && bytes > Device()->dynamic_limit) Device()->dynamic_limit = bytes;
  return cudaSuccess;
}

cudaError_t DeviceAttribute(int* value, cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 163 << 10;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;  // few, so that grids made of it loop
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

void FillMemory(void* memory, int byte, size_t size) {
  if (Device() == nullptr || size == 0 || !Device()->HostMayUse(memory, size, true)) return;
  std::memset(memory, byte, size);
}

void CopyMemory(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  if (Device() == nullptr || size == 0) return;
  if (kind != cudaMemcpyHostToDevice && !Device()->HostMayUse(from, size, false)) return;
  if (kind != cudaMemcpyDeviceToHost && !Device()->HostMayUse(to, size, true)) return;
  std::memmove(to, from, size);
}

}  // namespace tftoolkit::emulation
