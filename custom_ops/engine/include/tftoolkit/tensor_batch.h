// Many tensors in one launch: what a kernel must know of each lies in its parameters, since a table in memory would
// have to be copied there first.
//
// Tensors are cut into chunks of equal size, a block takes one chunk at a time, and a launch holds as many tensors as
// parameters have room for: some hundred, or a dozen before CUDA 12.1. So launches are few, however small the tensors.

#ifndef TFTOOLKIT_TENSOR_BATCH_H_
#define TFTOOLKIT_TENSOR_BATCH_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tftoolkit/cuda.h"

namespace tftoolkit {
namespace cuda {

#if defined(CUDART_VERSION) && CUDART_VERSION >= 12010
constexpr int64_t kParameterBytes = 32764;
#else
constexpr int64_t kParameterBytes = 4096;
#endif

// `Tensor` has its size as `n`.
template <typename Tensor, int64_t kChunk>
struct TensorBatch {
  static constexpr int kMost = (kParameterBytes - 64) / (sizeof(Tensor) + sizeof(int64_t));  // 64: other parameters

  Tensor tensors[kMost];
  int64_t ends[kMost];  // after each tensor, how many chunks there are up to here
  int count = 0;

  __host__ __device__ int64_t chunks() const { return count == 0 ? 0 : ends[count - 1]; }

  void Add(const Tensor& tensor) {
    ends[count] = chunks() + Ceil(tensor.n, kChunk);
    tensors[count++] = tensor;
  }

  struct Piece {
    int tensor;
    int64_t begin, end;  // elements
  };

  __device__ __forceinline__ Piece Find(int64_t chunk) const {
    int first = 0;
    for (int last = count - 1; first < last;) {
      const int middle = (first + last) / 2;
      if (ends[middle] > chunk) {
        last = middle;
      } else {
        first = middle + 1;
      }
    }
    const int64_t begin = (first == 0 ? chunk : chunk - ends[first - 1]) * kChunk;
    return {first, begin, min(begin + kChunk, tensors[first].n)};
  }
};

// Calls launch(batch) for get(0), …, get(count - 1), as many in a batch as it
// has room for; empty tensors are left out.
template <typename Batch, typename Get, typename Launch>
void InBatches(int64_t count, const Get& get, const Launch& launch) {
  Batch batch;
  for (int64_t i = 0; i < count; ++i) {
    if (const auto tensor = get(i); tensor.n > 0) batch.Add(tensor);
    if (batch.count == Batch::kMost || (i == count - 1 && batch.count > 0)) {
      launch(batch);
      batch.count = 0;
    }
  }
}

// Four elements, which a thread loads and stores at once where the tensor is aligned to them.
template <typename T>
using Four = std::conditional_t<sizeof(T) == 4, uint4, uint2>;

template <typename T>
__device__ __forceinline__ bool IsAligned(const T* tensor) {
  return reinterpret_cast<uintptr_t>(tensor) % sizeof(Four<T>) == 0;
}

// Elements `i` and following in float32; those from `end` on are 0.
template <typename T>
__device__ __forceinline__ void LoadFour(const T* tensor, int64_t i, int64_t end, bool aligned, float (&values)[4]) {
  T elements[4] = {};
  if (aligned && i + 4 <= end) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(tensor + i);
    memcpy(elements, &four, sizeof four);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (i + j < end) elements[j] = tensor[i + j];
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) values[j] = Load(elements[j]);
}

template <typename T>
__device__ __forceinline__ void StoreFour(const float (&values)[4], T* tensor, int64_t i, int64_t end, bool aligned) {
  T elements[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) elements[j] = Store<T>(values[j]);
  if (aligned && i + 4 <= end) {
    Four<T> four;
    memcpy(&four, elements, sizeof four);
    __stwb(reinterpret_cast<Four<T>*>(tensor + i), four);  // an ordinary store, which nvcc would cut into four
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (i + j < end) tensor[i + j] = elements[j];
  }
}

}  // namespace cuda
}  // namespace tftoolkit

#endif  // TFTOOLKIT_TENSOR_BATCH_H_
