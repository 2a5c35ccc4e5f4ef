// The CUDA kernels of deform_conv2d in bfloat16; see deform_conv2d.cu.

#include "gpu_backward.h"

namespace gpu {

template ffi::Error LaunchForward<tftoolkit::BFloat16>(cudaStream_t stream, const Forward& call, const Chunk& chunk);
template ffi::Error LaunchBackward<tftoolkit::BFloat16>(cudaStream_t stream, const Backward& call, const Chunk& chunk);

}  // namespace gpu
