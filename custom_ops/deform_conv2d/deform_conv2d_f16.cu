// The CUDA kernels of deform_conv2d in float16; see deform_conv2d.cu.

#include "gpu_backward.h"

namespace gpu {

template ffi::Error LaunchForward<tftoolkit::Half>(cudaStream_t stream, const Forward& call, const Chunk& chunk);
template ffi::Error LaunchBackward<tftoolkit::Half>(cudaStream_t stream, const Backward& call, const Chunk& chunk);

}  // namespace gpu
