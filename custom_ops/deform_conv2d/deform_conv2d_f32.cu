// The CUDA kernels of deform_conv2d in float32; see deform_conv2d.cu.

#include "gpu_backward.h"

namespace gpu {

template ffi::Error LaunchForward<float>(cudaStream_t stream, const Forward& call, const Chunk& chunk);
template ffi::Error LaunchBackward<float>(cudaStream_t stream, const Backward& call, const Chunk& chunk);

}  // namespace gpu
