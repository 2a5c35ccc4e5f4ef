// RMSNorm and its gradient on CUDA; the maths stands in rms_norm.cc. Loads and stores T, computes in float32.
//
// Forward and dx: a group of threads per row (a warp for short rows, a block for long ones), so that a row's reads are
// coalesced and its second pass hits the cache. dgamma: a block owns 32 columns of a slab of rows and writes partial
// sums, which a second kernel adds in slab order: no atomics, so the result is the same every time, on every GPU.
//
// Traffic: forward reads x, writes y: the floor. Backward reads dy and x twice (dx, then dgamma): 5/3 of the floor.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "tftoolkit/grid.h"
#include "tftoolkit/op.h"

namespace {

__device__ float Load(float value) { return value; }
__device__ float Load(__half value) { return __half2float(value); }
__device__ float Load(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ T Store(float value);
template <>
__device__ float Store<float>(float value) {
  return value;
}
template <>
__device__ __half Store<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __nv_bfloat16 Store<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

constexpr int kWarp = 32;
constexpr int kBlock = 256;
constexpr int64_t kShortRow = 1024;  // up to here a warp per row keeps more rows in flight than a block per row

// The sum over the `kGroup` consecutive threads that share a row, in all of them.
template <int kGroup>
__device__ float GroupSum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  if constexpr (kGroup > kWarp) {
    __shared__ float warps[kGroup / kWarp];
    __syncthreads();  // the array may still be in use by the previous sum
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
    for (int i = 0; i < kGroup / kWarp; ++i) value += warps[i];
  }
  return value;
}

// Rows are strided over the grid, so any number of rows works with a bounded grid. All threads of a group leave the
// loop together: its condition depends on the row alone.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kBlock)
    Forward(const T* x, const T* gamma, T* y, float* inv_rms, int64_t rows, int64_t d, float epsilon) {
  const int lane = threadIdx.x % kGroup;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kBlock / kGroup);
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * (kBlock / kGroup) + threadIdx.x / kGroup; r < rows; r += stride) {
    const T* row = x + r * d;
    float sum = 0;
    for (int64_t i = lane; i < d; i += kGroup) sum += Load(row[i]) * Load(row[i]);
    const float inv = 1.0f / sqrtf(GroupSum<kGroup>(sum) / static_cast<float>(d) + epsilon);
    if (lane == 0) inv_rms[r] = inv;
    for (int64_t i = lane; i < d; i += kGroup) y[r * d + i] = Store<T>(Load(row[i]) * inv * Load(gamma[i]));
  }
}

template <typename T, int kGroup>
__global__ void __launch_bounds__(kBlock) BackwardX(const T* dy, const float* d_inv_rms, const T* x, const T* gamma,
                                                    const float* inv_rms, T* dx, int64_t rows, int64_t d) {
  const int lane = threadIdx.x % kGroup;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kBlock / kGroup);
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * (kBlock / kGroup) + threadIdx.x / kGroup; r < rows; r += stride) {
    const T* dy_row = dy + r * d;
    const T* x_row = x + r * d;
    float dot = 0;
    for (int64_t i = lane; i < d; i += kGroup) dot += Load(dy_row[i]) * Load(x_row[i]) * Load(gamma[i]);
    const float inv = inv_rms[r];
    const float scale = inv * inv * inv * ((GroupSum<kGroup>(dot) + d_inv_rms[r]) / static_cast<float>(d));
    for (int64_t i = lane; i < d; i += kGroup) {
      dx[r * d + i] = Store<T>(inv * (Load(dy_row[i]) * Load(gamma[i])) - Load(x_row[i]) * scale);
    }
  }
}

constexpr int kSlabThreads = 8;  // rows that a block of 32 x 8 threads reads at a time
constexpr int64_t kMaxSlabs = 256;

// partials[slab, i] = sum over the slab's rows of dy * x * inv_rms. Grid: (column tiles, slabs).
template <typename T>
__global__ void __launch_bounds__(kWarp* kSlabThreads)
    PartialGamma(const T* dy, const T* x, const float* inv_rms, float* partials, int64_t rows, int64_t d,
                 int64_t rows_per_slab) {
  __shared__ float sums[kSlabThreads][kWarp];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int64_t begin = blockIdx.y * rows_per_slab;
  const int64_t end = min(begin + rows_per_slab, rows);
  float sum = 0;
  if (column < d) {
    for (int64_t r = begin + threadIdx.y; r < end; r += kSlabThreads) {
      sum += Load(dy[r * d + column]) * Load(x[r * d + column]) * inv_rms[r];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < d) {
    for (int i = 1; i < kSlabThreads; ++i) sum += sums[i][threadIdx.x];
    partials[blockIdx.y * d + column] = sum;
  }
}

template <typename T>
__global__ void SumPartials(const float* partials, T* dgamma, int64_t slabs, int64_t d) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= d) return;
  float sum = 0;
  for (int64_t s = 0; s < slabs; ++s) sum += partials[s * d + column];
  dgamma[column] = Store<T>(sum);
}

int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

ffi::Error Launched() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("CUDA launch failed: ") + cudaGetErrorString(error));
}

struct Rows {
  int64_t rows, d;
  unsigned blocks;
  bool warp_per_row;

  explicit Rows(const ffi::AnyBuffer& x) : rows(1) {
    const auto dims = x.dimensions();
    for (size_t i = 0; i + 1 < dims.size(); ++i) rows *= dims[i];
    d = dims.back();
    warp_per_row = d <= kShortRow;
    blocks = tftoolkit::GridBlocks(Ceil(rows, warp_per_row ? kBlock / kWarp : 1), 1 << 20);
  }
};

template <typename T>
ffi::Error RunForward(cudaStream_t stream, const ffi::AnyBuffer& x, const ffi::AnyBuffer& gamma, ffi::AnyBuffer& y,
                      ffi::AnyBuffer& inv_rms, float epsilon) {
  const Rows shape(x);
  if (shape.rows == 0) return ffi::Error::Success();
  const auto kernel = shape.warp_per_row ? Forward<T, kWarp> : Forward<T, kBlock>;
  kernel<<<shape.blocks, kBlock, 0, stream>>>(
      static_cast<const T*>(x.untyped_data()), static_cast<const T*>(gamma.untyped_data()),
      static_cast<T*>(y.untyped_data()), static_cast<float*>(inv_rms.untyped_data()), shape.rows, shape.d, epsilon);
  return Launched();
}

template <typename T>
ffi::Error RunBackward(cudaStream_t stream, ffi::ScratchAllocator& scratch, const ffi::AnyBuffer& dy_buffer,
                       const ffi::AnyBuffer& d_inv_rms, const ffi::AnyBuffer& x_buffer, const ffi::AnyBuffer& gamma,
                       const ffi::AnyBuffer& inv_rms, ffi::AnyBuffer& dx, ffi::AnyBuffer& dgamma) {
  const Rows shape(x_buffer);
  if (shape.d == 0) return ffi::Error::Success();
  const T* dy = static_cast<const T*>(dy_buffer.untyped_data());
  const T* x = static_cast<const T*>(x_buffer.untyped_data());
  const float* inv = static_cast<const float*>(inv_rms.untyped_data());
  if (shape.rows > 0) {
    const auto kernel = shape.warp_per_row ? BackwardX<T, kWarp> : BackwardX<T, kBlock>;
    kernel<<<shape.blocks, kBlock, 0, stream>>>(dy, static_cast<const float*>(d_inv_rms.untyped_data()), x,
                                                static_cast<const T*>(gamma.untyped_data()), inv,
                                                static_cast<T*>(dx.untyped_data()), shape.rows, shape.d);
  }
  // Slabs are cut by the shape alone; with no rows there are none, and the sum is zero.
  const int64_t rows_per_slab = std::max<int64_t>(4 * kSlabThreads, Ceil(shape.rows, kMaxSlabs));
  const int64_t slabs = Ceil(shape.rows, rows_per_slab);
  const std::optional<void*> memory = scratch.Allocate(std::max<int64_t>(1, slabs * shape.d) * sizeof(float));
  if (!memory) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no GPU memory for the partial sums of dgamma");
  float* partials = static_cast<float*>(*memory);
  if (slabs > 0) {
    const dim3 grid(static_cast<unsigned>(Ceil(shape.d, kWarp)), static_cast<unsigned>(slabs));
    PartialGamma<T>
        <<<grid, dim3(kWarp, kSlabThreads), 0, stream>>>(dy, x, inv, partials, shape.rows, shape.d, rows_per_slab);
  }
  SumPartials<T><<<static_cast<unsigned>(Ceil(shape.d, kBlock)), kBlock, 0, stream>>>(
      partials, static_cast<T*>(dgamma.untyped_data()), slabs, shape.d);
  return Launched();
}

ffi::Error RmsNorm(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::Result<ffi::AnyBuffer> y,
                   ffi::Result<ffi::AnyBuffer> inv_rms, float epsilon) {
  switch (x.element_type()) {
    case ffi::F32:
      return RunForward<float>(stream, x, gamma, *y, *inv_rms, epsilon);
    case ffi::BF16:
      return RunForward<__nv_bfloat16>(stream, x, gamma, *y, *inv_rms, epsilon);
    case ffi::F16:
      return RunForward<__half>(stream, x, gamma, *y, *inv_rms, epsilon);
    default:
      return ffi::Error::InvalidArgument("RmsNorm takes f32, bf16 or f16");
  }
}

ffi::Error RmsNormGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer dy, ffi::AnyBuffer d_inv_rms,
                       ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer inv_rms, ffi::Result<ffi::AnyBuffer> dx,
                       ffi::Result<ffi::AnyBuffer> dgamma) {
  switch (x.element_type()) {
    case ffi::F32:
      return RunBackward<float>(stream, scratch, dy, d_inv_rms, x, gamma, inv_rms, *dx, *dgamma);
    case ffi::BF16:
      return RunBackward<__nv_bfloat16>(stream, scratch, dy, d_inv_rms, x, gamma, inv_rms, *dx, *dgamma);
    case ffi::F16:
      return RunBackward<__half>(stream, scratch, dy, d_inv_rms, x, gamma, inv_rms, *dx, *dgamma);
    default:
      return ffi::Error::InvalidArgument("RmsNormGrad takes f32, bf16 or f16");
  }
}

}  // namespace

// Command-buffer compatible: the same launches for the same shapes, so XLA may replay them as a CUDA graph.
XLA_FFI_DEFINE_HANDLER(RmsNormCuda, RmsNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon"),
                       {ffi::Traits::kCmdBufferCompatible});

// Not so the gradient: its scratch memory must not be captured.
XLA_FFI_DEFINE_HANDLER(RmsNormGradCuda, RmsNormGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>());

TK_KERNEL(RmsNorm, CUDA, RmsNormCuda);
TK_KERNEL(RmsNormGrad, CUDA, RmsNormGradCuda);
