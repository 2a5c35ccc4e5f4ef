// LayerNorm and RMSNorm, and their gradients, on CUDA: what ops with and without bias and residual share;
// norm_arguments.h has the maths. Loads and stores T, computes in float32.
//
// A group of threads takes a row, a warp where it is short, else a block: 16 bytes per thread at a time. The first
// packs of a row stay in the threads' registers until it is done; those beyond 16 KiB of it, backward beyond 8, are
// read again.
//
// Traffic forward: x is read and y written, with a residual that is read and the sum written: the floor. Backward: dy
// and x (and d_sum) are read and dx is written: the floor, and up to 512 rows of partial sums of dgamma and dbias,
// which stay in the second cache. A block adds up those of its rows in shared memory (rows beyond 96 KiB of sums: in
// its row of the partial sums) and a second kernel adds up the blocks' in order. No atomics, and rows are dealt to
// blocks by the shape alone, so results are the same on every GPU. One launch forward, two backward.
//
// A mean that is large against the deviation costs no digits: it is summed in double, the variance is taken around it
// in a second pass, and it stays the sum of two floats until it has been subtracted. In backward, what a pack adds up
// to is in float32, and the rest of its sums in double.

#ifndef TFTOOLKIT_NORM_CUDA_H_
#define TFTOOLKIT_NORM_CUDA_H_

#include <algorithm>
#include <cstdint>
#include <optional>

#include "tftoolkit/cuda.h"
#include "tftoolkit/norm_arguments.h"

namespace tftoolkit {
namespace norm {

using cuda::kPack;
using cuda::kWarp;

constexpr int kHeldForward = 4;               // packs of a row that a thread keeps
constexpr int kHeldBackward = 2;              // of x and dy each: more would not fit its registers
constexpr int64_t kShortRow = 2 << 10;        // bytes: up to here a warp per row keeps more rows in flight
constexpr int64_t kMostSlabs = 512;           // rows of partial sums
constexpr int64_t kMostShared = 96 << 10;     // bytes; every GPU since sm_80 has them
constexpr int64_t kDefaultShared = 48 << 10;  // bytes; more has to be asked for

constexpr int kBlock = 256;  // the group of a long row
template <int kGroup>
constexpr int kThreads = kGroup == kWarp ? 128 : kGroup;
template <int kGroup>
constexpr int kRows = kThreads<kGroup> / kGroup;  // that a block works on at a time

// The first element of the pack that this thread takes in a round.
template <typename T, int kGroup>
__device__ __forceinline__ int64_t First(int round) {
  return (int64_t{round} * kGroup + threadIdx.x % kGroup) * kPack<T>;
}

// Reads what the thread keeps of a row.
template <typename T, int kGroup, int kHeld, typename Held, typename Read>
__device__ __forceinline__ void Keep(Held (&held)[kHeld], int64_t d, const Read& read) {
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (First<T, kGroup>(k) < d) held[k] = read(First<T, kGroup>(k));
  }
}

// visit(first element, pack) for the thread's packs of a row: those that it keeps, then others, which are read.
template <typename T, int kGroup, int kHeld, typename Held, typename Read, typename Visit>
__device__ __forceinline__ void ForPacks(const Held (&held)[kHeld], int64_t d, const Read& read, const Visit& visit) {
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (First<T, kGroup>(k) < d) visit(First<T, kGroup>(k), held[k]);
  }
  for (int64_t first = First<T, kGroup>(kHeld); first < d; first += kGroup * kPack<T>) visit(first, read(first));
}

// Rows are strided over the grid, so any number of rows works with a bounded one. All threads of a group leave the loop
// together: its condition depends on the row alone.
template <typename T, int kGroup, bool kCentred>
__global__ void __launch_bounds__(kThreads<kGroup>, 512 / kThreads<kGroup>)
    ForwardRows(Forward<T> all, int64_t rows, bool packed) {
  const int64_t d = all.d, stride = int64_t{gridDim.x} * kRows<kGroup>;
  for (int64_t r = int64_t{blockIdx.x} * kRows<kGroup> + threadIdx.x / kGroup; r < rows; r += stride) {
    const T* x = all.x + r * d;
    const T* summed = all.residual ? all.sum + r * d : x;
    const auto read = [&](int64_t first) {
      const uint4 pack = cuda::LoadPack(x, first, 0, d, packed);
      if (!all.residual) return pack;
      cuda::Values<T> sum = cuda::Unpack<T>(pack);
      const cuda::Values<T> others = cuda::LoadValues(all.residual + r * d, first, d, packed);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) sum.at[j] += others.at[j];
      const uint4 rounded = cuda::Pack<T>(sum);
      cuda::StorePack(rounded, all.sum + r * d, first, 0, d, packed);
      return rounded;
    };
    const auto read_again = [&](int64_t first) { return cuda::LoadPack(summed, first, 0, d, packed); };
    uint4 held[kHeldForward];
    Keep<T, kGroup>(held, d, read);
    float shift = 0, rest = 0;  // the mean is their sum
    if constexpr (kCentred) {
      double total[1] = {0};
      ForPacks<T, kGroup>(held, d, read, [&](int64_t, uint4 pack) {
        const cuda::Values<T> values = cuda::Unpack<T>(pack);
#pragma unroll
        for (int j = 0; j < kPack<T>; ++j) total[0] += values.at[j];
      });
      cuda::GroupSums<kGroup>(total);
      const double mean = total[0] / static_cast<double>(d);
      shift = static_cast<float>(mean), rest = static_cast<float>(mean - shift);
    }
    const auto read_next = [&](int64_t first) { return kCentred ? read_again(first) : read(first); };
    float squares[1] = {0};
    ForPacks<T, kGroup>(held, d, read_next, [&](int64_t first, uint4 pack) {
      const cuda::Values<T> values = cuda::Unpack<T>(pack);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) {
        const float centred = first + j < d ? (values.at[j] - shift) - rest : 0.0f;
        squares[0] += centred * centred;
      }
    });
    cuda::GroupSums<kGroup>(squares);
    const float inv = 1.0f / sqrtf(squares[0] / static_cast<float>(d) + all.epsilon);
    if (threadIdx.x % kGroup == 0) {
      all.inv[r] = inv;
      if (kCentred) all.mean[r] = shift;
    }
    ForPacks<T, kGroup>(held, d, read_again, [&](int64_t first, uint4 pack) {
      cuda::Values<T> values = cuda::Unpack<T>(pack);
      const cuda::Values<T> gamma = cuda::LoadValues(all.gamma, first, d, packed);
      cuda::Values<T> bias{};
      if (all.bias) bias = cuda::LoadValues(all.bias, first, d, packed);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) {
        values.at[j] = ((values.at[j] - shift) - rest) * inv * gamma.at[j] + bias.at[j];
      }
      cuda::StoreValues(values, all.y + r * d, first, d, packed);
    });
  }
}

// Sums over columns: where a block adds them up. Column i lies at (i % kPack) * packs + i / kPack, so that neighbouring
// threads, whose columns are a pack apart, are not served one after the other. First dgamma's, then, if wanted, dbias'.
template <typename T>
struct Columns {
  int64_t packs;
  bool wants_bias;

  Columns(int64_t d, bool wants_bias) : packs(cuda::Ceil(d, kPack<T>)), wants_bias(wants_bias) {}
  __host__ __device__ int64_t half() const { return packs * kPack<T>; }
  __host__ __device__ int64_t size() const { return (wants_bias ? 2 : 1) * half(); }
};

struct Pair {
  uint4 dy, x;
};

// Writes dx, and the block's row of `partials`.
template <typename T, int kGroup, bool kCentred>
__global__ void __launch_bounds__(kThreads<kGroup>, 512 / kThreads<kGroup>)
    BackwardRows(Backward<T> all, int64_t rows, Columns<T> columns, float* partials, bool shared, bool packed) {
  extern __shared__ float accumulators[];
  const int64_t d = all.d, stride = int64_t{gridDim.x} * kRows<kGroup>;
  const double n = static_cast<double>(d);
  partials += blockIdx.x * columns.size();
  // A thread adds to columns that no other of its group adds to.
  float* mine = shared ? accumulators + threadIdx.x / kGroup * columns.size() : partials;
  for (int64_t i = threadIdx.x % kGroup; i < columns.packs; i += kGroup) {
    for (int64_t j = i; j < columns.size(); j += columns.packs) mine[j] = 0;
  }
  for (int64_t r = int64_t{blockIdx.x} * kRows<kGroup> + threadIdx.x / kGroup; r < rows; r += stride) {
    const auto read = [&](int64_t first) {
      return Pair{cuda::LoadPack(all.dy + r * d, first, 0, d, packed),
                  cuda::LoadPack(all.x + r * d, first, 0, d, packed)};
    };
    Pair held[kHeldBackward];
    Keep<T, kGroup>(held, d, read);
    const float shift = kCentred ? all.mean[r] : 0.0f;
    double sums[kCentred ? 3 : 1] = {};  // of g * (x - shift), g, x - shift
    ForPacks<T, kGroup>(held, d, read, [&](int64_t first, Pair pair) {
      const cuda::Values<T> above = cuda::Unpack<T>(pair.dy), x = cuda::Unpack<T>(pair.x);
      const cuda::Values<T> gamma = cuda::LoadValues(all.gamma, first, d, packed);
      float sum_gx = 0, sum_g = 0, sum_x = 0;
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) {
        const float g = above.at[j] * gamma.at[j], centred = x.at[j] - shift;
        sum_gx += g * centred;
        sum_g += g;
        sum_x += first + j < d ? centred : 0.0f;
      }
      sums[0] += sum_gx;
      if constexpr (kCentred) sums[1] += sum_g, sums[2] += sum_x;
    });
    cuda::GroupSums<kGroup>(sums);
    double sum_g = 0, left = 0;  // left: what rounding the mean to one float left
    if constexpr (kCentred) sum_g = sums[1], left = sums[2] / n;
    const float inv = all.inv[r], rest = static_cast<float>(left), mean_g = static_cast<float>(sum_g / n);
    const float mean_gh = static_cast<float>((sums[0] - left * sum_g) * inv / n);
    const float from_inv = inv * inv * all.d_inv[r] / static_cast<float>(n);
    const float from_mean = kCentred ? all.d_mean[r] / static_cast<float>(n) : 0.0f;
    ForPacks<T, kGroup>(held, d, read, [&](int64_t first, Pair pair) {
      const cuda::Values<T> above = cuda::Unpack<T>(pair.dy), gamma = cuda::LoadValues(all.gamma, first, d, packed);
      cuda::Values<T> values = cuda::Unpack<T>(pair.x);
      cuda::Values<T> from_sum{};
      if (all.d_sum) from_sum = cuda::LoadValues(all.d_sum + r * d, first, d, packed);
      float* to_gamma = mine + first / kPack<T>;
      float* to_bias = to_gamma + columns.half();
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) {
        const float h = ((values.at[j] - shift) - rest) * inv;
        const float whitened = inv * (above.at[j] * gamma.at[j] - mean_g - h * mean_gh);
        values.at[j] = whitened - h * from_inv + from_mean + from_sum.at[j];
        to_gamma[j * columns.packs] += above.at[j] * h;
        if (columns.wants_bias) to_bias[j * columns.packs] += above.at[j];
      }
      cuda::StoreValues(values, all.dx + r * d, first, d, packed);
    });
  }
  if (!shared) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < columns.size(); i += kThreads<kGroup>) {
    float sum = 0;
    for (int group = 0; group < kRows<kGroup>; ++group) sum += accumulators[group * columns.size() + i];
    partials[i] = sum;
  }
}

constexpr int kSlabThreads = 8;  // rows of partial sums that a block of 32 x 8 threads reads at a time

template <typename T>
__global__ void __launch_bounds__(kWarp* kSlabThreads)
    SumSlabs(const float* partials, int64_t slabs, Columns<T> columns, int64_t d, T* dgamma, T* dbias) {
  __shared__ float sums[kSlabThreads][kWarp];
  const int64_t i = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  float sum = 0;
  if (i < columns.size()) {
    for (int64_t slab = threadIdx.y; slab < slabs; slab += kSlabThreads) sum += partials[slab * columns.size() + i];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= columns.size()) return;
  for (int row = 1; row < kSlabThreads; ++row) sum += sums[row][threadIdx.x];
  T* to = i < columns.half() ? dgamma : dbias;
  const int64_t place = i % columns.half(), column = place % columns.packs * kPack<T> + place / columns.packs;
  if (column < d) to[column] = Store<T>(sum);
}

template <typename T>
bool IsShort(int64_t d) {
  return d * static_cast<int64_t>(sizeof(T)) <= kShortRow;
}

template <bool kCentred, typename T>
ffi::Error LaunchForward(cudaStream_t stream, const Forward<T>& all, int64_t rows) {
  if (rows == 0) return ffi::Error::Success();
  const bool packed = cuda::Packed<T>(all.d, all.x, all.residual, all.gamma, all.bias, all.y, all.sum);
  const bool is_short = IsShort<T>(all.d);
  const auto kernel = is_short ? ForwardRows<T, kWarp, kCentred> : ForwardRows<T, kBlock, kCentred>;
  const unsigned blocks = GridBlocks(cuda::Ceil(rows, is_short ? kRows<kWarp> : 1), 1 << 20);
  kernel<<<blocks, is_short ? kThreads<kWarp> : kBlock, 0, stream>>>(all, rows, packed);
  return cuda::Launched();
}

// No `dbias`: it is not computed.
template <bool kCentred, typename T>
ffi::Error LaunchBackward(cudaStream_t stream, ffi::ScratchAllocator& scratch, const Backward<T>& all, int64_t rows,
                          T* dgamma, T* dbias) {
  if (all.d == 0) return ffi::Error::Success();
  const bool packed = cuda::Packed<T>(all.d, all.dy, all.x, all.d_sum, all.gamma, all.dx);
  const bool is_short = IsShort<T>(all.d);
  const Columns<T> columns(all.d, dbias != nullptr);
  // Four rows each at least; with no rows there are no slabs, and the sums are zero.
  const int64_t at_once = is_short ? kRows<kWarp> : 1;
  const unsigned slabs = GridBlocks(cuda::Ceil(rows, 4 * at_once), kMostSlabs);
  const std::optional<void*> memory =
      scratch.Allocate(std::max<int64_t>(1, slabs * columns.size()) * static_cast<int64_t>(sizeof(float)));
  if (!memory) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no GPU memory for the partial sums of dgamma and dbias");
  }
  float* partials = static_cast<float*>(*memory);
  if (slabs > 0) {
    const int64_t wanted = at_once * columns.size() * static_cast<int64_t>(sizeof(float));
    const bool shared = wanted <= kMostShared;
    const int bytes = shared ? static_cast<int>(wanted) : 0;
    const auto kernel = is_short ? BackwardRows<T, kWarp, kCentred> : BackwardRows<T, kBlock, kCentred>;
    if (bytes > kDefaultShared) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    kernel<<<slabs, is_short ? kThreads<kWarp> : kBlock, bytes, stream>>>(all, rows, columns, partials, shared, packed);
  }
  SumSlabs<T><<<static_cast<unsigned>(cuda::Ceil(columns.size(), kWarp)), dim3(kWarp, kSlabThreads), 0, stream>>>(
      partials, slabs, columns, all.d, dgamma, dbias);
  return cuda::Launched();
}

}  // namespace norm
}  // namespace tftoolkit

#endif  // TFTOOLKIT_NORM_CUDA_H_
