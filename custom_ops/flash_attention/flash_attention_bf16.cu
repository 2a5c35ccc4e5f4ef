// Attention's CUDA kernels in bfloat16; see flash_attention.cu.

#include "gpu_backward.h"
#include "gpu_forward.h"

namespace gpu {

template cudaError_t LaunchForward<__nv_bfloat16>(cudaStream_t stream, const ForwardCall& call);
template cudaError_t LaunchBackward<__nv_bfloat16>(cudaStream_t stream, const BackwardCall& call);

}  // namespace gpu
