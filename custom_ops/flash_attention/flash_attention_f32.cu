// Attention's CUDA kernels in float32; see flash_attention.cu.

#include "gpu_backward.h"
#include "gpu_forward.h"

namespace gpu {

template cudaError_t LaunchForward<float>(cudaStream_t stream, const ForwardCall& call);
template cudaError_t LaunchBackward<float>(cudaStream_t stream, const BackwardCall& call);

}  // namespace gpu
