// From tensors to the problem and to what kernels get of it, with all that can be wrong: lengths and borders are looked
// at on the host.

#ifndef TFTOOLKIT_FLASH_ATTENTION_GPU_TASK_H_
#define TFTOOLKIT_FLASH_ATTENTION_GPU_TASK_H_

#include <string>
#include <vector>

#include "gpu.h"
#include "sequences.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/op.h"

namespace gpu {

using tftoolkit::Data;

inline ffi::Error Checked(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string(what) + ": " + cudaGetErrorString(error));
}

// A copy on the host, when the stream is through with what is before it.
inline cudaError_t ToHost(cudaStream_t stream, const ffi::AnyBuffer& buffer, std::vector<int32_t>* copy) {
  copy->resize(buffer.element_count());
  if (copy->empty()) return cudaSuccess;
  const size_t bytes = copy->size() * sizeof(int32_t);
  const cudaError_t error = cudaMemcpyAsync(copy->data(), buffer.untyped_data(), bytes, cudaMemcpyDeviceToHost, stream);
  return error == cudaSuccess ? cudaStreamSynchronize(stream) : error;
}

// The problem as the CPU sees it, with its sequences, and where kernels find these.
struct Task {
  Problem problem;
  Sequences all;
};

inline ffi::Error BatchedTask(cudaStream_t stream, const ffi::AnyBuffer& q, const ffi::AnyBuffer& k,
                              const ffi::AnyBuffer* bias, const ffi::AnyBuffer* lengths, Task* task) {
  std::vector<int32_t> copy;
  if (lengths != nullptr) {
    const cudaError_t error = ToHost(stream, *lengths, &copy);
    if (error != cudaSuccess) return Checked(error, "copying lengths");
  }
  std::string wrong = Batched(q, k, bias, lengths == nullptr ? nullptr : copy.data(), task->problem);
  if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  task->all = {q.dimensions()[0], q.dimensions()[1],
               k.dimensions()[1], lengths == nullptr ? nullptr : Data<int32_t>(*lengths),
               nullptr,           nullptr};
  return ffi::Error::Success();
}

inline ffi::Error PackedTask(cudaStream_t stream, const ffi::AnyBuffer& q, const ffi::AnyBuffer& k,
                             const ffi::AnyBuffer& q_borders, const ffi::AnyBuffer& k_borders, Task* task) {
  std::vector<int32_t> copies[2];
  for (int side = 0; side < 2; ++side) {
    const cudaError_t error = ToHost(stream, side == 0 ? q_borders : k_borders, &copies[side]);
    if (error != cudaSuccess) return Checked(error, side == 0 ? "copying cu_seqlens_q" : "copying cu_seqlens_k");
  }
  const int64_t count = q_borders.dimensions()[0] - 1;
  std::string wrong = Packed(q, k, copies[0].data(), copies[1].data(), count, task->problem);
  if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  task->all = {count,   q.dimensions()[0],        k.dimensions()[0],
               nullptr, Data<int32_t>(q_borders), Data<int32_t>(k_borders)};
  return ffi::Error::Success();
}

}  // namespace gpu

#endif  // TFTOOLKIT_FLASH_ATTENTION_GPU_TASK_H_
