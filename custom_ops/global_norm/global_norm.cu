// The Euclidean norm of many tensors, and the sum of their squares, on CUDA; global_norm.cc says what they are. The
// squares of a chunk are added up in float32 by a block, and the chunks' sums in float64, in their order, by a second
// launch of one block: no atomics, so the result is the same every time, on every GPU.
//
// Traffic: every element is read once, the floor, and 8 bytes for 2^14 elements are written and read. One launch for
// some hundred tensors, and the second.

#include "tftoolkit/cuda.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/tensor_batch.h"

namespace {

namespace cuda = tftoolkit::cuda;

constexpr int kThreads = 256;
constexpr int64_t kChunk = 1 << 14;

template <typename T>
struct Tensor {
  const T* data;
  int64_t n;
};

template <typename T>
using Batch = cuda::TensorBatch<Tensor<T>, kChunk>;

template <typename T>
__global__ void __launch_bounds__(kThreads) ChunkSquares(const __grid_constant__ Batch<T> batch, double* sums) {
  for (int64_t chunk = blockIdx.x; chunk < batch.chunks(); chunk += gridDim.x) {
    const typename Batch<T>::Piece piece = batch.Find(chunk);
    const T* data = batch.tensors[piece.tensor].data;
    const bool aligned = cuda::IsAligned(data);
    float lanes[4] = {0, 0, 0, 0};
    for (int64_t i = piece.begin + 4 * threadIdx.x; i < piece.end; i += 4 * kThreads) {
      float x[4];
      cuda::LoadFour(data, i, piece.end, aligned, x);
#pragma unroll
      for (int j = 0; j < 4; ++j) lanes[j] += x[j] * x[j];
    }
    float sum[1] = {(lanes[0] + lanes[1]) + (lanes[2] + lanes[3])};
    cuda::GroupSums<kThreads>(sum);
    if (threadIdx.x == 0) sums[chunk] = sum[0];
  }
}

// One block.
__global__ void __launch_bounds__(kThreads) AddUp(const double* sums, int64_t chunks, bool root, float* result) {
  __shared__ double parts[kThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) sum += sums[i];
  parts[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  if (threadIdx.x != 0) return;
  const float total = static_cast<float>(parts[0]);
  *result = root ? sqrtf(total) : total;
}

ffi::Error Run(cudaStream_t stream, ffi::ScratchAllocator& scratch, const char* op, const ffi::RemainingArgs& tensors,
               bool root, ffi::ResultBuffer<ffi::F32>& result) {
  const ffi::DataType type = tensors.get<ffi::AnyBuffer>(0)->element_type();
  return tftoolkit::WithFloatType(op, type, [&](auto value) {
    using T = decltype(value);
    const auto get = [&](int64_t i) {
      const ffi::AnyBuffer tensor = *tensors.get<ffi::AnyBuffer>(i);
      return Tensor<T>{tftoolkit::Data<T>(tensor), static_cast<int64_t>(tensor.element_count())};
    };
    const int64_t count = static_cast<int64_t>(tensors.size());
    int64_t chunks = 0;
    for (int64_t i = 0; i < count; ++i) chunks += cuda::Ceil(get(i).n, kChunk);
    const std::optional<void*> memory = scratch.Allocate(std::max<int64_t>(1, chunks) * sizeof(double));
    if (!memory) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no GPU memory for the sums of chunks");
    double* sums = static_cast<double*>(*memory);
    int64_t done = 0;
    cuda::InBatches<Batch<T>>(count, get, [&](const Batch<T>& batch) {
      ChunkSquares<T><<<tftoolkit::GridBlocks(batch.chunks(), 1 << 20), kThreads, 0, stream>>>(batch, sums + done);
      done += batch.chunks();
    });
    AddUp<<<1, kThreads, 0, stream>>>(sums, chunks, root, result->typed_data());
    return cuda::Launched();
  });
}

ffi::Error GlobalNorm(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::RemainingArgs tensors,
                      ffi::ResultBuffer<ffi::F32> norm) {
  return Run(stream, scratch, "GlobalNorm", tensors, true, norm);
}

ffi::Error SumOfSquares(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::RemainingArgs tensors,
                        ffi::ResultBuffer<ffi::F32> sum) {
  return Run(stream, scratch, "SumOfSquares", tensors, false, sum);
}

}  // namespace

// Not command-buffer compatible: the scratch memory must not be captured.
XLA_FFI_DEFINE_HANDLER(GlobalNormCuda, GlobalNorm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                           .RemainingArgs()
                           .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER(SumOfSquaresCuda, SumOfSquares,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                           .RemainingArgs()
                           .Ret<ffi::Buffer<ffi::F32>>());

TK_KERNEL(GlobalNorm, CUDA, GlobalNormCuda);
TK_KERNEL(SumOfSquares, CUDA, SumOfSquaresCuda);
