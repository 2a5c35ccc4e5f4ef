// Connectionist temporal classification with the softmax in it, and its gradient, on CUDA; ctc_loss.cc has the maths.
// Loads and stores T, computes in float32, with exponents beside it for sums over ways (gpu_states.h).
//
// Forward: a warp takes a frame and sums up its softmax; a block takes a sequence and goes through its frames, a thread
// for each state, two rows of states in global memory, which the first cache holds. Backward: a block takes a sequence
// forward, keeping all rows, and back; then a block takes a frame and stores its gradient. What states of one class
// are expected to be is added up by the thread of the first of them, in their order: no atomics, the same bits always.
//
// Traffic: forward reads the logits once and a second time from the caches, backward reads them and writes their
// gradient once, the floor, beside 8 bytes for each frame and state that are written and read twice. What binds are the
// 2 T steps of a sequence, one behind the other, some microseconds each: a batch of as many sequences as there are
// multiprocessors costs as much as one.
//
// Labels and lengths are not refused, for which the host would have to wait: the sequence's loss and gradient are NaN.

#include <cstdint>
#include <string>

#include "gpu_states.h"
#include "problem.h"
#include "tftoolkit/cuda.h"
#include "tftoolkit/dispatch.h"

namespace {

using gpu::Given;
using gpu::kNaN;
using gpu::Number;
using gpu::Rows;
using gpu::Sequence;
using tftoolkit::Data;
using tftoolkit::Load;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace cuda = tftoolkit::cuda;

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;

// A block for each sequence. `firsts` and `nexts` (null: not wanted) say of each label whether it is the sequence's
// first of its class, and where the next one of its class is, or -1.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    FindSequences(Given<T> all, Sequence* sequences, const float* d_loss, bool* firsts, int64_t* nexts) {
  for (int64_t b = blockIdx.x; b < all.batch; b += gridDim.x) {
    long long before[1] = {0};
    for (int64_t i = threadIdx.x; all.width == 0 && i < b; i += kThreads) {
      before[0] += min(max(int64_t{0}, all.counts[i]), all.values + 1);
    }
    cuda::GroupSums<kThreads>(before);
    const int64_t begin = all.width == 0 ? before[0] : b * all.width, count = all.counts[b], frames = all.frames[b];
    const bool fits = count >= 0 && frames >= 0 && frames <= all.time && count <= all.values - begin &&
                      (all.width == 0 ? b + 1 < all.batch || begin + count == all.values : count <= all.width);
    const int64_t end = fits ? begin + count : begin;
    bool bad = !fits;
    for (int64_t k = begin + threadIdx.x; fits && k < end; k += kThreads) {
      const int64_t label = all.labels[k];
      bad = bad || label < 0 || label >= all.classes || label == all.blank;
      if (firsts == nullptr) continue;
      int64_t next = k + 1, last = k - 1;
      while (next < end && all.labels[next] != label) ++next;
      while (last >= begin && all.labels[last] != label) --last;
      nexts[k] = next < end ? next : -1;
      firsts[k] = last < begin;
    }
    bad = __syncthreads_or(bad);
    if (threadIdx.x == 0) {
      const float upstream = d_loss == nullptr ? 0 : d_loss[b];
      sequences[b] = bad ? Sequence{0, 0, 0, kNaN, 1} : Sequence{begin, frames, count, upstream, 0};
    }
  }
}

// A warp for each frame.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    SumFrames(Given<T> all, const Sequence* sequences, float* shifts, float* sums) {
  const int64_t stride = int64_t{gridDim.x} * (kThreads / cuda::kWarp);
  const int lane = threadIdx.x % cuda::kWarp;
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / cuda::kWarp) + threadIdx.x / cuda::kWarp; i < all.batch * all.time;
       i += stride) {
    const T* row = all.logits + i * all.classes;
    const bool is_frame = i % all.time < sequences[i / all.time].frames;
    const int64_t classes = is_frame ? all.classes : 0;
    float top = -gpu::kInfinity;
    for (int64_t c = lane; c < classes; c += cuda::kWarp) top = fmaxf(top, Load(row[c]));
    for (int offset = cuda::kWarp / 2; offset > 0; offset /= 2) {
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
    }
    const float shift = std::isfinite(top) ? top : 0;
    float sum[1] = {0};
    for (int64_t c = lane; c < classes; c += cuda::kWarp) sum[0] += tftoolkit::Exp(Load(row[c]) - shift);
    cuda::GroupSums<cuda::kWarp>(sum);
    if (lane == 0) {
      shifts[i] = shift;
      sums[i] = is_frame ? sum[0] : 1.0f;
    }
  }
}

// All threads of a block get what a sequence's frames divide by, as a logarithm; NaN where a frame has no softmax.
__device__ double LogSums(const Sequence& q, const float* sums) {
  double total[1] = {0};
  for (int64_t t = threadIdx.x; t < q.frames; t += kThreads) total[0] += log(static_cast<double>(sums[t]));
  cuda::GroupSums<kThreads>(total);
  return std::isfinite(total[0]) ? total[0] : static_cast<double>(kNaN);
}

// A block for each sequence.
template <typename T>
__global__ void __launch_bounds__(kThreads) Losses(Given<T> all, const Sequence* sequences, const float* shifts,
                                                   const float* sums, Rows rows, bool zero_infinity, float* losses) {
  for (int64_t b = blockIdx.x; b < all.batch; b += gridDim.x) {
    const Sequence q = sequences[b];
    const Number total = gpu::RunForward(all, q, b, shifts, rows);
    const double log_sums = LogSums(q, sums + b * all.time);
    if (threadIdx.x == 0) {
      const double log_all = log(static_cast<double>(total.mantissa)) + total.exponent * 0.693147180559945309417;
      const float loss = static_cast<float>(log_sums - log_all);
      losses[b] = q.bad ? kNaN : zero_infinity && std::isinf(loss) ? 0.0f : loss;
    }
  }
}

// A block for each sequence: how likely each state is at each frame takes the place of the mantissa in `rows`.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ExpectStates(Given<T> all, Sequence* sequences, const float* shifts, const float* sums, Rows rows, Rows two) {
  for (int64_t b = blockIdx.x; b < all.batch; b += gridDim.x) {
    const Sequence q = sequences[b];
    const Number total = gpu::RunForward(all, q, b, shifts, rows);
    const bool is_number = !std::isnan(LogSums(q, sums + b * all.time)), possible = total.exponent > -gpu::kInfinity;
    if (threadIdx.x == 0 && !q.bad) sequences[b].d_loss = !is_number ? kNaN : possible ? q.d_loss : 0.0f;
    const float inverse = 1 / total.mantissa;
    for (int64_t t = possible ? q.frames - 1 : -1; t >= 0; --t) {
      const Number* from = two.Row(q, b, t + 1);
      Number *to = two.Row(q, b, t), *forward = rows.Row(q, b, t);
      for (int64_t s = 2 * q.First(t) + threadIdx.x; q.Has(t, s); s += kThreads) {
        const Number skipped =
            s + 2 < 2 * q.count && all.MaySkipTo(q, s + 2) ? gpu::At(q, from, t + 1, s + 2) : gpu::Zero();
        const Number next = s < 2 * q.count ? gpu::At(q, from, t + 1, s + 1) : gpu::Zero();
        const Number follows = Sum(gpu::At(q, from, t + 1, s), next, skipped);
        to[s] = Times(follows, all.Emitted(q, b, t, s, shifts[b * all.time + t]));
        forward[s].mantissa = forward[s].mantissa * follows.mantissa * inverse *
                              gpu::PowerOf2(forward[s].exponent + follows.exponent - total.exponent);
      }
      __syncthreads();
    }
  }
}

struct Upstream {
  const float *d_sum, *shifts, *sums;
  const bool* firsts;
  const int64_t* nexts;
};

// A block for each frame.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    StoreGradient(Given<T> all, const Sequence* sequences, Upstream of, Rows rows, T* dlogits) {
  for (int64_t i = blockIdx.x; i < all.batch * all.time; i += gridDim.x) {
    const int64_t b = i / all.time, t = i % all.time;
    const Sequence q = sequences[b];
    const T* x = all.logits + i * all.classes;
    T* dx = dlogits + i * all.classes;
    if (q.bad || t >= q.frames) {
      for (int64_t c = threadIdx.x; c < all.classes; c += kThreads) dx[c] = tftoolkit::Store<T>(q.bad ? kNaN : 0.0f);
      continue;
    }
    const float shift = of.shifts[i], scale = q.d_loss / of.sums[i] + of.d_sum[i];
    for (int64_t c = threadIdx.x; c < all.classes; c += kThreads) {
      dx[c] = tftoolkit::Store<T>(tftoolkit::Exp(Load(x[c]) - shift) * scale);
    }
    if (q.d_loss == 0 || std::isnan(q.d_loss)) continue;  // for all threads alike
    const Number* likely = rows.Row(q, b, t);
    float blanks[1] = {0};
    for (int64_t s = 2 * (q.First(t) + threadIdx.x); q.Has(t, s); s += 2 * kThreads) blanks[0] += likely[s].mantissa;
    cuda::GroupSums<kThreads>(blanks);  // and all elements are stored
    const auto take = [&](int64_t c, float expected) {
      dx[c] = tftoolkit::Store<T>(tftoolkit::Exp(Load(x[c]) - shift) * scale - expected * q.d_loss);
    };
    if (threadIdx.x == 0) take(all.blank, blanks[0]);
    for (int64_t k = q.begin + threadIdx.x; k < q.begin + q.count; k += kThreads) {
      if (!of.firsts[k]) continue;
      float expected = 0;
      for (int64_t j = k; j >= 0; j = of.nexts[j]) {
        const int64_t s = 2 * (j - q.begin) + 1;
        if (q.Has(t, s)) expected += likely[s].mantissa;
      }
      take(all.labels[k], expected);
    }
  }
}

template <typename T>
Given<T> MakeGiven(const ffi::AnyBuffer& logits, const ffi::AnyBuffer& labels, const ffi::AnyBuffer& logit_lengths,
                   const ffi::AnyBuffer& label_lengths, int64_t blank) {
  const auto dims = logits.dimensions();
  const auto of = labels.dimensions();
  const int64_t values = static_cast<int64_t>(labels.element_count());
  return {Data<T>(logits),
          cuda::Integers(labels),
          cuda::Integers(logit_lengths),
          cuda::Integers(label_lengths),
          values,
          of.size() == 2 ? of[1] : 0,
          dims[0],
          dims[1],
          dims[2],
          blank};
}

// Memory for `count` of them, or null.
template <typename Element>
Element* Allocated(ffi::ScratchAllocator& scratch, int64_t count) {
  const std::optional<void*> memory = scratch.Allocate(std::max<int64_t>(1, count) * sizeof(Element));
  return memory ? static_cast<Element*>(*memory) : nullptr;
}

ffi::Error NoMemory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no GPU memory for the states"); }

ffi::Error CtcLoss(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer logits, ffi::AnyBuffer labels,
                   ffi::AnyBuffer logit_lengths, ffi::AnyBuffer label_lengths, Result loss, Result max, Result sum,
                   int64_t blank, bool zero_infinity) {
  if (std::string wrong = tftoolkit::ctc::CheckShapes(logits, labels, blank); !wrong.empty()) {
    return ffi::Error::InvalidArgument(wrong);
  }
  return tftoolkit::WithFloatType("CtcLoss", logits.element_type(), [&](auto type) {
    using T = decltype(type);
    const Given<T> all = MakeGiven<T>(logits, labels, logit_lengths, label_lengths, blank);
    if (all.batch == 0) return ffi::Error::Success();
    Sequence* sequences = Allocated<Sequence>(scratch, all.batch);
    const Rows rows{Allocated<Number>(scratch, 2 * (2 * all.values + all.batch)), 2};
    if (sequences == nullptr || rows.numbers == nullptr) return NoMemory();
    float *shifts = Data<float>(max), *sums = Data<float>(sum);
    const unsigned blocks = tftoolkit::GridBlocks(all.batch, kMostBlocks);
    FindSequences<T><<<blocks, kThreads, 0, stream>>>(all, sequences, nullptr, nullptr, nullptr);
    const int64_t warps = cuda::Ceil(all.batch * all.time, kThreads / cuda::kWarp);
    if (warps > 0) {
      SumFrames<T><<<tftoolkit::GridBlocks(warps, kMostBlocks), kThreads, 0, stream>>>(all, sequences, shifts, sums);
    }
    Losses<T><<<blocks, kThreads, 0, stream>>>(all, sequences, shifts, sums, rows, zero_infinity, Data<float>(loss));
    return cuda::Launched();
  });
}

ffi::Error CtcLossGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer logits, ffi::AnyBuffer labels,
                       ffi::AnyBuffer logit_lengths, ffi::AnyBuffer label_lengths, ffi::AnyBuffer d_loss,
                       ffi::AnyBuffer d_sum, ffi::AnyBuffer max, ffi::AnyBuffer sum, Result dlogits, int64_t blank) {
  if (std::string wrong = tftoolkit::ctc::CheckShapes(logits, labels, blank); !wrong.empty()) {
    return ffi::Error::InvalidArgument(wrong);
  }
  return tftoolkit::WithFloatType("CtcLossGrad", logits.element_type(), [&](auto type) {
    using T = decltype(type);
    const Given<T> all = MakeGiven<T>(logits, labels, logit_lengths, label_lengths, blank);
    const int64_t frames = all.batch * all.time, states = 2 * all.values + all.batch;
    if (frames == 0) return ffi::Error::Success();
    Sequence* sequences = Allocated<Sequence>(scratch, all.batch);
    bool* firsts = Allocated<bool>(scratch, all.values);
    int64_t* nexts = Allocated<int64_t>(scratch, all.values);
    const Rows rows{Allocated<Number>(scratch, all.time * states), all.time};
    const Rows two{Allocated<Number>(scratch, 2 * states), 2};
    if (!sequences || !firsts || !nexts || !rows.numbers || !two.numbers) return NoMemory();
    const float *shifts = Data<float>(max), *sums = Data<float>(sum);
    const unsigned blocks = tftoolkit::GridBlocks(all.batch, kMostBlocks);
    FindSequences<T><<<blocks, kThreads, 0, stream>>>(all, sequences, Data<float>(d_loss), firsts, nexts);
    ExpectStates<T><<<blocks, kThreads, 0, stream>>>(all, sequences, shifts, sums, rows, two);
    StoreGradient<T><<<tftoolkit::GridBlocks(frames, kMostBlocks), kThreads, 0, stream>>>(
        all, sequences, Upstream{Data<float>(d_sum), shifts, sums, firsts, nexts}, rows, Data<T>(dlogits));
    return cuda::Launched();
  });
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

// Not command-buffer compatible: the scratch memory must not be captured.
XLA_FFI_DEFINE_HANDLER(CtcLossCuda, CtcLoss,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT.Attr<int64_t>("blank")
                           .Attr<bool>("zero_infinity"));
XLA_FFI_DEFINE_HANDLER(CtcLossGradCuda, CtcLossGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT.Attr<int64_t>("blank"));

TK_KERNEL(CtcLoss, CUDA, CtcLossCuda);
TK_KERNEL(CtcLossGrad, CUDA, CtcLossGradCuda);
