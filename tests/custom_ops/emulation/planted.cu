// Kernels with one mistake each, chosen by the attribute `bug`; 0 is the kernel as it should be. Lines that
// findings must name carry a mark (an @ and a word).

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstring>

#include "tftoolkit/grid.h"
#include "tftoolkit/op.h"

namespace {

enum Bug {
  kNone,
  kNoBarrierAfterStore,
  kNoBarrierBeforeReuse,
  kBarrierUnderCondition,
  kTwoBarriers,
  kEarlyReturn,
  kSmallArray,
  kReadsPast,
  kWritesPast,
  kWritesInput,
  kMisaligned,
  kShuffleUnderCondition,
  kShuffleFromOutside,
  kNoSyncwarp,
  kWrongSegment,
  kSamePartialsRow,
  kUnwrittenScratch,
  kNoAtomic,
  kNoFence,
  kNullPointer,
  kTooManyThreads,
  kTooMuchShared,
  kCopiesPast,
  kAssertion,
  kHostReads,
  kUnwrittenOutput,
};

constexpr int kBlock = 64;

// y = x with each block's numbers reversed; blocks take several pieces.
template <int kBug>
__global__ void Reverse(const float* x, float* y, int64_t pieces) {
  __shared__ float tile[kBug == kSmallArray ? kBlock - 1 : kBlock];
  const int t = threadIdx.x;
  if (kBug == kEarlyReturn && t == 5) return;
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    if (kBug != kNoBarrierBeforeReuse) __syncthreads();
    tile[t] = x[piece * kBlock + t + (kBug == kReadsPast)];  // @store @read
    if (kBug == kBarrierUnderCondition && t < 32) {
      __syncthreads();  // @some
    } else if (kBug == kTwoBarriers && t < 32) {
      __syncthreads();  // @first
    } else if (kBug != kNoBarrierAfterStore && kBug != kBarrierUnderCondition) {
      __syncthreads();  // @second
    }
    y[piece * kBlock + t + (kBug == kWritesPast)] = tile[kBlock - 1 - t];  // @load @write
    if (kBug == kWritesInput) const_cast<float*>(x)[t] = 0;                // @input
  }
}

// y = x, four numbers at a time.
template <int kBug>
__global__ void CopyWide(const float* x, float* y, int64_t n) {
  const int64_t i = 4 * threadIdx.x + (kBug == kMisaligned);
  if (kBug == kNullPointer) x = nullptr;
  if (i + 4 <= n) *reinterpret_cast<float4*>(y + i) = *reinterpret_cast<const float4*>(x + i);  // @wide
}

// y[i] = the sum of the 32 numbers that x[i] is among.
template <int kBug>
__global__ void WarpSum(const float* x, float* y) {
  const int lane = threadIdx.x % 32;
  float sum = x[threadIdx.x];
  if (kBug == kShuffleUnderCondition) {
    if (lane < 16) sum += __shfl_down_sync(0xffffffffu, sum, 8);  // @half
  } else if (kBug == kShuffleFromOutside) {
    if (lane < 16) sum += __shfl_sync(0x0000ffffu, sum, 20);  // @outside
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  y[threadIdx.x] = sum;
}

// y[i] = x of the next lane, through shared memory and without a barrier of the block.
template <int kBug>
__global__ void NextLane(const float* x, float* y) {
  __shared__ float values[kBlock];
  const int t = threadIdx.x, lane = t % 32;
  values[t] = x[t];  // @give
  if (kBug == kWrongSegment) {
    __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);
  } else if (kBug != kNoSyncwarp) {
    __syncwarp();
  }
  y[t] = values[t - lane + (lane + 1) % 32];  // @take
}

// Each block adds its numbers up, into a row of its own; a second kernel adds the rows, in order.
template <int kBug>
__global__ void Partials(const float* x, float* partials) {
  if (threadIdx.x > 0) return;
  float sum = 0;
  for (int i = 0; i < kBlock; ++i) sum += x[blockIdx.x * kBlock + i];
  if (kBug == kUnwrittenScratch && blockIdx.x == 1) return;
  partials[kBug == kSamePartialsRow ? 0 : blockIdx.x] = sum;  // @partial
}

__global__ void SumPartials(const float* partials, float* y, int count) {
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += partials[i];  // @row
  y[threadIdx.x] = sum;
}

// The same in one kernel: the block that is the last to finish adds the rows.
template <int kBug>
__global__ void LastBlockSums(const float* x, float* partials, unsigned* finished, float* y) {
  if (threadIdx.x > 0) return;
  float sum = 0;
  for (int i = 0; i < kBlock; ++i) sum += x[blockIdx.x * kBlock + i];
  partials[blockIdx.x] = sum;  // @mine
  if (kBug != kNoFence) __threadfence();
  if (atomicAdd(finished, 1u) != gridDim.x - 1) return;
  __threadfence();
  sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partials[i];  // @theirs
  for (int i = 0; i < kBlock; ++i) y[i] = sum;
}

// y[i % 64] = the sum over blocks.
template <int kBug>
__global__ void AddUp(const float* x, float* y) {
  if (kBug == kNoAtomic) {
    y[threadIdx.x] += x[blockIdx.x * kBlock + threadIdx.x];  // @add
  } else {
    atomicAdd(&y[threadIdx.x], x[blockIdx.x * kBlock + threadIdx.x]);
  }
}

// y = x, a row of 32 numbers for each thread.
template <int kBug>
__global__ void CopyRows(const float* x, float* y) {
  assert(threadIdx.x < (kBug == kAssertion ? 1 : 2));  // @assert
  if (kBug == kUnwrittenOutput && threadIdx.x == 1) return;
  const int count = kBug == kCopiesPast ? 33 : 32;
  memcpy(y + 32 * threadIdx.x, x + 32 * threadIdx.x, count * sizeof(float));  // @copy
}

struct Call {
  cudaStream_t stream;
  const float* x;
  float* y;
  int64_t n;
  float* partials;
  unsigned* finished;
};

template <int kBug>
void LaunchReverse(const Call& call) {
  const int64_t pieces = call.n / kBlock;
  const size_t bytes = kBug == kTooMuchShared ? 50 << 10 : 0;
  Reverse<kBug><<<tftoolkit::GridBlocks(pieces, 2), kBug == kTooManyThreads ? 1025 : kBlock, bytes, call.stream>>>(
      call.x, call.y, pieces);
}

template <int kBug>
void LaunchPartials(const Call& call) {
  const unsigned blocks = call.n / kBlock;
  Partials<kBug><<<blocks, 32, 0, call.stream>>>(call.x, call.partials);
  SumPartials<<<1, kBlock, 0, call.stream>>>(call.partials, call.y, static_cast<int>(blocks));
}

template <int kBug>
void LaunchLast(const Call& call) {
  const unsigned blocks = call.n / kBlock;
  cudaMemsetAsync(call.finished, 0, sizeof(unsigned), call.stream);
  LastBlockSums<kBug><<<blocks, 32, 0, call.stream>>>(call.x, call.partials, call.finished, call.y);
}

template <int kBug>
void LaunchAddUp(const Call& call) {
  cudaMemsetAsync(call.y, 0, kBlock * sizeof(float), call.stream);
  AddUp<kBug><<<static_cast<unsigned>(call.n / kBlock), kBlock, 0, call.stream>>>(call.x, call.y);
}

template <int kBug>
void LaunchCopy(const Call& call) {
  CopyWide<kBug><<<1, static_cast<unsigned>(call.n / 4), 0, call.stream>>>(call.x, call.y, call.n);
}

template <int kBug>
void LaunchCopyRows(const Call& call) {
  if (kBug == kHostReads && call.x[0] < 0) return;  // @host
  CopyRows<kBug><<<1, 2, 0, call.stream>>>(call.x, call.y);
}

template <int kBug>
void LaunchWarpSum(const Call& call) {
  WarpSum<kBug><<<1, kBlock, 0, call.stream>>>(call.x, call.y);
}

template <int kBug>
void LaunchNextLane(const Call& call) {
  NextLane<kBug><<<1, kBlock, 0, call.stream>>>(call.x, call.y);
}

using Launch = void (*)(const Call&);

// Each bug in its kernel.
constexpr Launch kLaunches[] = {
    LaunchReverse<kNone>,
    LaunchReverse<kNoBarrierAfterStore>,
    LaunchReverse<kNoBarrierBeforeReuse>,
    LaunchReverse<kBarrierUnderCondition>,
    LaunchReverse<kTwoBarriers>,
    LaunchReverse<kEarlyReturn>,
    LaunchReverse<kSmallArray>,
    LaunchReverse<kReadsPast>,
    LaunchReverse<kWritesPast>,
    LaunchReverse<kWritesInput>,
    LaunchCopy<kMisaligned>,
    LaunchWarpSum<kShuffleUnderCondition>,
    LaunchWarpSum<kShuffleFromOutside>,
    LaunchNextLane<kNoSyncwarp>,
    LaunchNextLane<kWrongSegment>,
    LaunchPartials<kSamePartialsRow>,
    LaunchPartials<kUnwrittenScratch>,
    LaunchAddUp<kNoAtomic>,
    LaunchLast<kNoFence>,
    LaunchCopy<kNullPointer>,
    LaunchReverse<kTooManyThreads>,
    LaunchReverse<kTooMuchShared>,
    LaunchCopyRows<kCopiesPast>,
    LaunchCopyRows<kAssertion>,
    LaunchCopyRows<kHostReads>,
    LaunchCopyRows<kUnwrittenOutput>,
    // Right ones, from here on.
    LaunchCopy<kNone>,
    LaunchWarpSum<kNone>,
    LaunchNextLane<kNone>,
    LaunchPartials<kNone>,
    LaunchAddUp<kNone>,
    LaunchLast<kNone>,
    LaunchCopyRows<kNone>,
};

ffi::Error Planted(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::Buffer<ffi::F32> x,
                   ffi::ResultBuffer<ffi::F32> y, int64_t bug, int64_t) {
  const int64_t n = static_cast<int64_t>(x.element_count());
  const auto partials = scratch.Allocate(n * sizeof(float)), finished = scratch.Allocate(sizeof(unsigned));
  if (!partials || !finished) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory");
  kLaunches[bug](
      {stream, x.typed_data(), y->typed_data(), n, static_cast<float*>(*partials), static_cast<unsigned*>(*finished)});
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? ffi::Error::Success() : ffi::Error::Internal(cudaGetErrorString(error));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(PlantedCuda, Planted,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                           .Arg<ffi::Buffer<ffi::F32>>()
                           .Ret<ffi::Buffer<ffi::F32>>()
                           .Attr<int64_t>("bug")
                           .Attr<int64_t>("size"));

TK_OP(Planted, "(x: f32[n], *, bug: i64, size: i64 = 256) -> (y: f32[size])");
TK_KERNEL(Planted, CUDA, PlantedCuda);
