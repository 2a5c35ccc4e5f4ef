// Cross-entropy of softmax(logits) with whole labels, and its gradient, on CUDA; softmax_cross_entropy.cc has the
// maths, rows.h that of a row. Loads and stores T, computes in float32, and each loss in float64.
//
// Forward: a group of threads takes a row, a warp where it is short, else a block. Each thread keeps a maximum and a
// sum around it, moves the sum when it meets a larger logit, and the group joins these in the order of its threads.
// Backward: a group takes a piece of a row. Logits come in packs of 16 bytes, cut where memory has its multiples of 16,
// so that rows may have any length.
//
// Traffic: forward reads the logits once, backward reads them and writes their gradient once, in one launch each: the
// floor. A GPU that moves 3 TB/s has time for some 17 instructions per 16-bit logit, and an exponential alone takes
// half of these, so that there arithmetic binds forward; float32 logits leave twice the time.
//
// A label that is no class is an error, for which forward waits for its kernel. Backward, which has no labels that
// forward has not seen, does not wait: there, such a row's gradient is NaN.

#include <cmath>
#include <cstdint>
#include <limits>

#include "rows.h"
#include "tftoolkit/cuda.h"
#include "tftoolkit/dispatch.h"

namespace {

using tftoolkit::Data;
using tftoolkit::Load;
using Result = ffi::Result<ffi::AnyBuffer>;
using Part = tftoolkit::cross_entropy::Part<float>;
namespace cuda = tftoolkit::cuda;
namespace cross_entropy = tftoolkit::cross_entropy;

constexpr int kBlock = 512;
constexpr int kThreads = 256;                 // of a block whose warps have rows of their own
constexpr int64_t kShortRow = 1024;           // classes: up to here a warp per row
constexpr int64_t kPiece = int64_t{1} << 13;  // classes of a row that a group takes at a time, backward
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <int kGroup>
constexpr int kBlockThreads = kGroup == cuda::kWarp ? kThreads : kGroup;

// Adds logits [low, high) of a pack.
template <typename T>
__device__ __forceinline__ void Add(Part& part, const cuda::Values<T>& x, int low, int high, bool wants_total) {
  float largest = -kInfinity;  // a NaN may get lost here; the sum keeps it
#pragma unroll
  for (int j = 0; j < cuda::kPack<T>; ++j) {
    if (j >= low && j < high) largest = x.at[j] > largest ? x.at[j] : largest;
  }
  const bool first = part.sum == 0;
  if (std::isfinite(largest) && (first || largest > part.shift)) {
    const float move = part.shift - largest;
    part.total += static_cast<float>(part.weight) * move;
    part.sum = first ? 0 : part.sum * tftoolkit::Exp(move);
    part.shift = largest;
  }
#pragma unroll
  for (int j = 0; j < cuda::kPack<T>; ++j) {
    if (j < low || j >= high) continue;
    const float centred = x.at[j] - part.shift;
    part.sum += tftoolkit::Exp(centred);
    if (wants_total) part.total += centred;
  }
  part.weight += high - low;
}

// The first thread of the group gets what all its threads have.
template <int kGroup>
__device__ void JoinGroup(Part& part, bool wants_total) {
  for (int offset = cuda::kWarp / 2; offset > 0; offset /= 2) {
    const Part other{__shfl_down_sync(0xffffffffu, part.shift, offset), __shfl_down_sync(0xffffffffu, part.sum, offset),
                     __shfl_down_sync(0xffffffffu, part.total, offset),
                     __shfl_down_sync(0xffffffffu, part.weight, offset)};
    tftoolkit::Join(part, other, wants_total);
  }
  if constexpr (kGroup > cuda::kWarp) {
    __shared__ Part warps[kGroup / cuda::kWarp];
    __syncthreads();  // the array may still be in use by the previous row
    if (threadIdx.x % cuda::kWarp == 0) warps[threadIdx.x / cuda::kWarp] = part;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < kGroup / cuda::kWarp; ++warp) tftoolkit::Join(part, warps[warp], wants_total);
    }
  }
}

template <typename T>
struct Rows {
  const T* logits;
  cuda::Integers labels;
  int64_t rows, classes;
  bool packed;  // logits begin at a multiple of 16 bytes
};

struct Losses {
  float *loss, *max, *sum;
};

// Rows are strided over the grid. All threads of a group leave the loop together: its condition, and those in it,
// depend on the row alone.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kBlockThreads<kGroup>)
    Forward(Rows<T> all, Losses to, cross_entropy::Options options, unsigned long long* refused) {
  constexpr int kRows = kBlockThreads<kGroup> / kGroup, kStep = cuda::kPack<T>;
  const int lane = threadIdx.x % kGroup;
  const bool wants_total = options.label_smoothing != 0;
  for (int64_t r = int64_t{blockIdx.x} * kRows + threadIdx.x / kGroup; r < all.rows; r += int64_t{gridDim.x} * kRows) {
    const int64_t label = all.labels[r], begin = r * all.classes, end = begin + all.classes;
    if (label == options.ignore_index || !cross_entropy::IsClass(label, all.classes)) {
      if (lane != 0) continue;
      const bool ignored = label == options.ignore_index;
      if (!ignored) atomicMin(refused, static_cast<unsigned long long>(r));
      to.loss[r] = ignored ? 0.0f : kNaN;
      to.max[r] = 0;  // as if all its logits were 0
      to.sum[r] = static_cast<float>(all.classes);
      continue;
    }
    Part part{};
#pragma unroll 4
    for (int64_t at = begin / kStep * kStep + lane * kStep; at < end; at += kGroup * kStep) {
      const cuda::Values<T> x = cuda::Unpack<T>(cuda::LoadPack(all.logits, at, begin, end, all.packed));
      if (at >= begin && at + kStep <= end) {  // most packs, which need no masks
        Add<T>(part, x, 0, kStep, wants_total);
      } else {
        Add<T>(part, x, static_cast<int>(max(begin - at, int64_t{0})), static_cast<int>(min(end - at, int64_t{kStep})),
               wants_total);
      }
    }
    JoinGroup<kGroup>(part, wants_total);
    if (lane != 0) continue;
    to.loss[r] =
        cross_entropy::Loss({part.shift, part.sum, part.total, part.weight}, Load(all.logits[begin + label]), options);
    to.max[r] = part.shift;
    to.sum[r] = part.sum;
  }
}

struct Above {
  const float *d_loss, *d_sum, *max, *sum;
};

template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    Backward(Rows<T> all, Above above, T* dlogits, cross_entropy::Options options, int64_t pieces) {
  constexpr int kStep = cuda::kPack<T>;
  const int lane = threadIdx.x % kGroup;
  const int64_t stride = int64_t{gridDim.x} * (kThreads / kGroup);
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / kGroup) + threadIdx.x / kGroup; i < all.rows * pieces;
       i += stride) {
    const int64_t r = i / pieces, row = r * all.classes, label = all.labels[r];
    const int64_t begin = row + i % pieces * kPiece, end = min(begin + kPiece, row + all.classes);
    const bool ignored = label == options.ignore_index;
    const float rest = ignored ? 0.0f : kNaN;  // where there is no class
    const cross_entropy::Gradient gradient =
        cross_entropy::RowGradient(above.d_loss[r], above.d_sum[r], above.max[r], above.sum[r], all.classes, options);
    const bool computed = !ignored && cross_entropy::IsClass(label, all.classes);
    for (int64_t at = begin / kStep * kStep + lane * kStep; at < end; at += kGroup * kStep) {
      cuda::Values<T> x = cuda::Unpack<T>(cuda::LoadPack(all.logits, at, begin, end, all.packed));
#pragma unroll
      for (int j = 0; j < kStep; ++j) {
        const float value = tftoolkit::Exp(x.at[j] - gradient.shift) * gradient.scale - gradient.offset;
        x.at[j] = !computed ? rest : at + j == row + label ? value - gradient.share : value;
      }
      cuda::StorePack(cuda::Pack<T>(x), dlogits, at, begin, end, all.packed);
    }
  }
}

ffi::Error SoftmaxCrossEntropy(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer logits,
                               ffi::AnyBuffer labels, Result loss, Result max, Result sum, int64_t ignore_index,
                               float label_smoothing, float z_loss) {
  const int64_t classes = logits.dimensions().back(), rows = labels.element_count();
  if (rows == 0) return ffi::Error::Success();
  const cuda::Refusal refusal(stream, scratch, cuda::Integers(labels));
  if (!refusal.first()) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no GPU memory for 8 bytes");
  const cross_entropy::Options options{ignore_index, label_smoothing, z_loss};
  const Losses to{Data<float>(loss), Data<float>(max), Data<float>(sum)};
  ffi::Error launched = tftoolkit::WithFloatType("SoftmaxCrossEntropy", logits.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* data = Data<T>(logits);
    const Rows<T> all{data, cuda::Integers(labels), rows, classes, cuda::Packed<T>(0, data)};
    const bool is_short = classes <= kShortRow;
    const auto kernel = is_short ? Forward<T, cuda::kWarp> : Forward<T, kBlock>;
    const unsigned blocks = tftoolkit::GridBlocks(cuda::Ceil(rows, is_short ? kThreads / cuda::kWarp : 1), 1 << 20);
    kernel<<<blocks, is_short ? kThreads : kBlock, 0, stream>>>(all, to, options, refusal.first());
    return cuda::Launched();
  });
  if (launched.failure()) return launched;
  return refusal.Wait(
      [&](int64_t index, int64_t label) { return cross_entropy::BadLabel(index, label, classes, ignore_index); });
}

ffi::Error SoftmaxCrossEntropyGrad(cudaStream_t stream, ffi::AnyBuffer logits, ffi::AnyBuffer labels,
                                   ffi::AnyBuffer d_loss, ffi::AnyBuffer d_sum, ffi::AnyBuffer max, ffi::AnyBuffer sum,
                                   Result dlogits, int64_t ignore_index, float label_smoothing, float z_loss) {
  const int64_t classes = logits.dimensions().back(), rows = labels.element_count();
  if (rows == 0 || classes == 0) return ffi::Error::Success();
  const cross_entropy::Options options{ignore_index, label_smoothing, z_loss};
  const Above above{Data<float>(d_loss), Data<float>(d_sum), Data<float>(max), Data<float>(sum)};
  return tftoolkit::WithFloatType("SoftmaxCrossEntropyGrad", logits.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* data = Data<T>(logits);
    T* to = Data<T>(dlogits);
    const Rows<T> all{data, cuda::Integers(labels), rows, classes, cuda::Packed<T>(0, data, to)};
    const bool is_short = classes <= kShortRow;
    const int64_t pieces = cuda::Ceil(classes, kPiece);
    const auto kernel = is_short ? Backward<T, cuda::kWarp> : Backward<T, kThreads>;
    const int64_t at_once = is_short ? kThreads / cuda::kWarp : 1;
    kernel<<<tftoolkit::GridBlocks(cuda::Ceil(rows * pieces, at_once), 1 << 20), kThreads, 0, stream>>>(
        all, above, to, options, pieces);
    return cuda::Launched();
  });
}

}  // namespace

// Not command-buffer compatible: it waits.
XLA_FFI_DEFINE_HANDLER(SoftmaxCrossEntropyCuda, SoftmaxCrossEntropy,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<int64_t>("ignore_index")
                           .Attr<float>("label_smoothing")
                           .Attr<float>("z_loss"));

// Command-buffer compatible: the same launch for the same shapes, so XLA may replay it as part of a CUDA graph.
XLA_FFI_DEFINE_HANDLER(SoftmaxCrossEntropyGradCuda, SoftmaxCrossEntropyGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<int64_t>("ignore_index")
                           .Attr<float>("label_smoothing")
                           .Attr<float>("z_loss"),
                       {ffi::Traits::kCmdBufferCompatible});

TK_KERNEL(SoftmaxCrossEntropy, CUDA, SoftmaxCrossEntropyCuda);
TK_KERNEL(SoftmaxCrossEntropyGrad, CUDA, SoftmaxCrossEntropyGradCuda);
