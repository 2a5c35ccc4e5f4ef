// The CUDA kernels of fused_linear_cross_entropy in float32; see fused_linear_cross_entropy.cu.

#include "gpu_gradients.h"
#include "gpu_logits.h"

namespace gpu {

template ffi::Error LaunchLogits<float>(cudaStream_t stream, const Call& call, const Chunk& chunk);
template ffi::Error LaunchGradients<float>(cudaStream_t stream, const Call& call, const Chunk& chunk, const Into& into);

}  // namespace gpu
