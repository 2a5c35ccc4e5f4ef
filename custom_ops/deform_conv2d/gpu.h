// What the CUDA kernels get, and who launches those that are compiled for each dtype; see deform_conv2d.cu.

#ifndef TFTOOLKIT_DEFORM_CONV2D_GPU_H_
#define TFTOOLKIT_DEFORM_CONV2D_GPU_H_

#include <cstdint>

#include "problem.h"
#include "tftoolkit/cuda.h"

namespace gpu {

namespace cuda = tftoolkit::cuda;
using tftoolkit::deform::Point;
using tftoolkit::deform::Shape;

constexpr int kThreads = 256;
constexpr int64_t kTile = 128;  // of a product: so many rows and columns

// Some pixels of y and what is made of them. `columns` is [pixel][group][point][channel of the group] in the dtype,
// `dcolumns` the same in float32.
struct Chunk {
  int64_t first, count;
  void* columns;
  float* dcolumns;
  bool begins, ends;  // whether it is the first, the last
};

// bias and mask may be null.
struct Forward {
  Shape shape;
  const void *x, *offset, *weight, *bias, *mask;
  void* y;
};

// Sums over chunks in float32, where there are several, and of the pixels of x those of one chunk as whole numbers
// times a power of 2, of which `room` bits are left by as many terms as one may have. `largest`: of all terms, a
// float's bits.
struct Backward {
  Shape shape;
  const void *dy, *x, *offset, *weight, *mask;
  void *dx, *doffset, *dweight, *dbias, *dmask;
  float *dx_sums, *dweight_sums;
  unsigned long long* fixed;
  unsigned* largest;
  int room;
};

// In the files of the three dtypes.
template <typename T>
ffi::Error LaunchForward(cudaStream_t stream, const Forward& call, const Chunk& chunk);
template <typename T>
ffi::Error LaunchBackward(cudaStream_t stream, const Backward& call, const Chunk& chunk);

}  // namespace gpu

#endif  // TFTOOLKIT_DEFORM_CONV2D_GPU_H_
