// What CUDA kernels share: 16 bytes of a row at a time, sums over a group of threads, launches that went wrong.
//
// The headers of the CPU's kernels serve here too: float_types.h for the types and their conversions (one instruction
// each on a GPU), dispatch.h, math.h, philox.h.

#ifndef TFTOOLKIT_CUDA_H_
#define TFTOOLKIT_CUDA_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "tftoolkit/float_types.h"
#include "tftoolkit/grid.h"
#include "tftoolkit/op.h"

namespace tftoolkit {
namespace cuda {

constexpr int kWarp = 32;

inline int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An error if one of the last launches went wrong.
inline ffi::Error Launched() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("CUDA launch failed: ") + cudaGetErrorString(error));
}

// Copies an element to the host when the stream is through with what is before it; an error if anything failed.
template <typename From, typename To>
ffi::Error Fetch(cudaStream_t stream, const From* from, To& to) {
  static_assert(sizeof(From) == sizeof(To));
  cudaMemcpyAsync(&to, from, sizeof to, cudaMemcpyDeviceToHost, stream);
  const cudaError_t error = cudaStreamSynchronize(stream);
  if (ffi::Error launched = Launched(); launched.failure()) return launched;
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("CUDA failed: ") + cudaGetErrorString(error));
}

// Packs: 16 bytes of T, which a thread loads and stores at once where they are aligned.

template <typename T>
constexpr int kPack = 16 / sizeof(T);  // elements

template <typename T>
struct Values {
  float at[kPack<T>];
};

// Whether rows of `d` elements can be read in packs: each begins at a multiple of 16 bytes. Null pointers can.
template <typename T, typename... Pointers>
bool Packed(int64_t d, const Pointers*... rows) {
  return d % kPack<T> == 0 && ((reinterpret_cast<uintptr_t>(rows) % 16 == 0) && ...);
}

// Elements `first` and following of a row; those outside of [begin, end) are 0. `packed`: full packs are aligned.
template <typename T>
__device__ __forceinline__ uint4 LoadPack(const T* row, int64_t first, int64_t begin, int64_t end, bool packed) {
  if (packed && first >= begin && first + kPack<T> <= end) return *reinterpret_cast<const uint4*>(row + first);
  T elements[kPack<T>];
#pragma unroll
  for (int j = 0; j < kPack<T>; ++j) {
    elements[j] = first + j >= begin && first + j < end ? row[first + j] : T();
  }
  uint4 pack;
  memcpy(&pack, elements, sizeof pack);
  return pack;
}

template <typename T>
__device__ __forceinline__ void StorePack(uint4 pack, T* row, int64_t first, int64_t begin, int64_t end, bool packed) {
  if (packed && first >= begin && first + kPack<T> <= end) {
    *reinterpret_cast<uint4*>(row + first) = pack;
    return;
  }
  T elements[kPack<T>];
  memcpy(elements, &pack, sizeof pack);
#pragma unroll
  for (int j = 0; j < kPack<T>; ++j) {
    if (first + j >= begin && first + j < end) row[first + j] = elements[j];
  }
}

template <typename T>
__device__ __forceinline__ Values<T> Unpack(uint4 pack) {
  T elements[kPack<T>];
  memcpy(elements, &pack, sizeof pack);
  Values<T> values;
#pragma unroll
  for (int j = 0; j < kPack<T>; ++j) values.at[j] = Load(elements[j]);
  return values;
}

template <typename T>
__device__ __forceinline__ uint4 Pack(const Values<T>& values) {
  T elements[kPack<T>];
#pragma unroll
  for (int j = 0; j < kPack<T>; ++j) elements[j] = Store<T>(values.at[j]);
  uint4 pack;
  memcpy(&pack, elements, sizeof pack);
  return pack;
}

// The same for rows that begin at 0, in float32.
template <typename T>
__device__ __forceinline__ Values<T> LoadValues(const T* row, int64_t first, int64_t d, bool packed) {
  return Unpack<T>(LoadPack(row, first, 0, d, packed));
}

template <typename T>
__device__ __forceinline__ void StoreValues(const Values<T>& values, T* row, int64_t first, int64_t d, bool packed) {
  StorePack(Pack<T>(values), row, first, 0, d, packed);
}

// Replaces each of the values by its sum over the `kGroup` consecutive threads of a group, in all of them: a warp, or
// the block. All threads of the group call it.
template <int kGroup, typename Value, int kCount>
__device__ __forceinline__ void GroupSums(Value (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      values[i] += __shfl_xor_sync(0xffffffffu, values[i], offset);
    }
  }
  if constexpr (kGroup > kWarp) {
    constexpr int kWarps = kGroup / kWarp;
    __shared__ Value warps[kCount][kWarps];
    __syncthreads();  // the array may still be in use by the previous sum
    if (threadIdx.x % kWarp == 0) {
      for (int i = 0; i < kCount; ++i) warps[i][threadIdx.x / kWarp] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = 0;
      for (int warp = 0; warp < kWarps; ++warp) values[i] += warps[i][warp];
    }
  }
}

// An input of whole numbers of either type, of which there are too few for a kernel of its own for each.
struct Integers {
  const int32_t* narrow;
  const int64_t* wide;

  explicit Integers(const ffi::AnyBuffer& buffer)
      : narrow(buffer.element_type() == ffi::S32 ? static_cast<const int32_t*>(buffer.untyped_data()) : nullptr),
        wide(buffer.element_type() == ffi::S64 ? static_cast<const int64_t*>(buffer.untyped_data()) : nullptr) {}
  __host__ __device__ int64_t operator[](int64_t i) const { return wide ? wide[i] : narrow[i]; }
};

// Finds the first of these that kernels cannot take, for an error that names it. A kernel that has begun cannot return
// one, so the handler waits for the stream, and the host loses its lead over the GPU.
class Refusal {
 public:
  Refusal(cudaStream_t stream, ffi::ScratchAllocator& scratch, const Integers& given) : stream_(stream), given_(given) {
    const std::optional<void*> memory = scratch.Allocate(sizeof *first_);
    if (!memory) return;
    first_ = static_cast<unsigned long long*>(*memory);
    cudaMemsetAsync(first_, 0xff, sizeof *first_, stream);
  }

  // For kernels: atomicMin with the index of what they refuse, which does not depend on their order. Null: no memory.
  unsigned long long* first() const { return first_; }

  // Waits for the kernels. Returns an error if one of them failed, error(index, value) if they refused anything.
  template <typename Error>
  ffi::Error Wait(const Error& error) const {
    int64_t index = 0, value = 0;
    if (ffi::Error failed = Fetch(stream_, first_, index); failed.failure() || index < 0) return failed;
    if (given_.wide) {
      if (ffi::Error failed = Fetch(stream_, given_.wide + index, value); failed.failure()) return failed;
    } else {
      int32_t narrow = 0;
      if (ffi::Error failed = Fetch(stream_, given_.narrow + index, narrow); failed.failure()) return failed;
      value = narrow;
    }
    return error(index, value);
  }

 private:
  cudaStream_t stream_;
  Integers given_;
  unsigned long long* first_ = nullptr;
};

}  // namespace cuda
}  // namespace tftoolkit

#endif  // TFTOOLKIT_CUDA_H_
