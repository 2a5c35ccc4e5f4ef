// Attention and its gradient on CUDA (Dao 2023: FlashAttention 2); the maths stands in flash_attention.cc.
//
// One block for each 64 rows (the queries of all heads that share one of k and v, so that a step of decoding with
// grouped heads reads keys once), over tiles of keys that go through two stages of shared memory: copies of the next
// tile run while this one is worked on. Scores, powers and sums stay in registers. bfloat16 and float16 are multiplied
// by tensor cores and added up in float32, powers rounded to the dtype as its second factor; float32 is exact. Few
// rows over many keys: the keys are split over blocks, as the shape alone says, and Combine puts the parts together.
//
// Backward: delta; dk and dv, a block for each tile of keys over all rows of its heads; dq, a block for each tile of
// rows over all keys; where wanted, the bias' gradient, a block for each tile of it over all that it was broadcast
// along. Each adds up in an order that the shape says: no atomics, the same bits every time. It costs seven products
// (scores and dp twice) where one kernel with atomics needs five: 14 queries * keys * depth operations to the floor's
// 10; the bias' gradient costs two products more. Above a depth of 128 dk and dv are made in two halves of columns, and
// scores and dp once more for the second.
//
// Traffic: forward, q and o once, k and v once for each 64 rows that share them; backward, all of q, d_o, k and v once
// for each tile of 64 (float32 above a depth of 128: 32) that a block keeps. Much of it should come from L2. Nobody has
// measured these kernels on a GPU yet: they have run in emulation only.
//
// Lengths and borders are looked at on the host, which waits for the stream to copy them: what is wrong with them must
// be an error of this call. Calls without them wait for nothing.
//
// gpu_task.h: from tensors to gpu.h: what kernels get. gpu_tiles.h: tiles and products of a warp. gpu_scores.h: mask,
// softcap, bias. gpu_forward.h, gpu_gradients.h, gpu_keys.h, gpu_backward.h: the passes, compiled for each dtype in a
// file of its own.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "gpu.h"
#include "gpu_scores.h"
#include "gpu_task.h"
#include "gpu_tiles.h"
#include "tftoolkit/grid.h"
#include "tftoolkit/op.h"

namespace gpu {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kBlocks = 128;     // where there would be fewer, keys are split
constexpr int64_t kLeastPart = 128;  // keys in a part

int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::optional<float*> Floats(ffi::ScratchAllocator& scratch, int64_t count) {
  const std::optional<void*> memory = scratch.Allocate(std::max<int64_t>(1, count) * sizeof(float));
  if (!memory) return std::nullopt;
  return static_cast<float*>(*memory);
}

ffi::Error NoMemory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no GPU memory for partial results"); }

// Calls launch(zero) with the dtype's type on a GPU.
template <typename Launch>
cudaError_t WithGpuType(Type type, const Launch& launch) {
  switch (type) {
    case Type::kBFloat16:
      return launch(__nv_bfloat16());
    case Type::kHalf:
      return launch(__half());
    default:
      return launch(float());
  }
}

// Whether rows of `depth` numbers may be copied in pieces of 16 bytes.
bool Aligned(Type type, const void* data, int64_t depth) {
  const int64_t bytes = depth * (type == Type::kFloat ? 4 : 2);
  return bytes % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

ffi::Error MakeCommon(const Task& task, Common* common) {
  const Shape& p = task.problem;
  if (std::max(p.depth, p.value_depth) > kMostDepth) {
    return ffi::Error::InvalidArgument("on CUDA the depths of q and v must be at most " + std::to_string(kMostDepth) +
                                       ", not " + std::to_string(p.depth) + " and " + std::to_string(p.value_depth));
  }
  *common = {p,
             task.all,
             Aligned(p.type, p.q, p.depth),
             Aligned(p.type, p.k, p.depth),
             Aligned(p.type, p.v, p.value_depth),
             p.softcap > 0 ? p.scale / p.softcap : p.scale * kLog2E,
             p.softcap * kLog2E};
  return ffi::Error::Success();
}

// o and what the backward pass needs from the parts of the keys, in their order; a warp for each place.
template <typename T>
__global__ void __launch_bounds__(kThreads) Combine(ForwardCall call) {
  const int lane = threadIdx.x % kWarp;
  const int64_t depth = call.common.shape.value_depth, size = call.places * (depth + 2);
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t place = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp; place < call.places;
       place += step) {
    const float* parts = call.partial + place * (depth + 2);
    float largest = MinusInfinity(), sum = 0;
    for (int64_t i = 0; i < call.splits; ++i) largest = fmaxf(largest, parts[i * size + depth]);
    const float base = largest == MinusInfinity() ? 0.0f : largest;
    for (int64_t i = 0; i < call.splits; ++i) {
      sum += parts[i * size + depth + 1] * exp2f(parts[i * size + depth] - base);
    }
    const float inverse = StoreStats(call.outputs, place, largest, sum, lane == 0);
    for (int64_t column = lane; column < depth; column += kWarp) {
      float value = 0;
      for (int64_t i = 0; i < call.splits; ++i) {
        value += parts[i * size + column] * exp2f(parts[i * size + depth] - base);
      }
      static_cast<T*>(call.outputs.o)[place * depth + column] = Store<T>(value * inverse);
    }
  }
}

ffi::Error RunForward(cudaStream_t stream, ffi::ScratchAllocator& scratch, const Task& task, const Outputs& outputs,
                      int64_t places) {
  const Problem& p = task.problem;
  ForwardCall call{{}, outputs, 1, INT64_MAX / 2, places, nullptr};
  if (ffi::Error error = MakeCommon(task, &call.common); error.failure()) return error;
  if (places == 0) return ffi::Error::Success();
  int64_t blocks = 0, keys = 0;
  for (const Sequence& s : p.sequences) {
    blocks += Ceil(p.rows(s), kForwardRows) * p.kv_heads;
    keys = std::max(keys, s.valid);
  }
  call.splits = std::max<int64_t>(1, std::min(kBlocks / std::max<int64_t>(1, blocks), keys / kLeastPart));
  if (call.splits > 1) {
    call.part = Ceil(keys, call.splits);
    const auto memory = Floats(scratch, call.splits * places * (p.value_depth + 2));
    if (!memory) return NoMemory();
    call.partial = *memory;
  }
  const cudaError_t error = WithGpuType(p.type, [&](auto zero) {
    using T = decltype(zero);
    if (const cudaError_t failed = LaunchForward<T>(stream, call); failed != cudaSuccess || call.splits == 1) {
      return failed;
    }
    Combine<T><<<tftoolkit::GridBlocks(Ceil(places, kThreads / kWarp), INT32_MAX), kThreads, 0, stream>>>(call);
    return cudaGetLastError();
  });
  return Checked(error, "CUDA launch failed");
}

// In the order in which dp is added up, so that in float32 the gradient of a score is exactly 0 where one weight is 1.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    Delta(const T* o, const T* d_o, const float* dlse, float* delta, int64_t places, int64_t depth) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < places; i += step) {
    const T *left = o + i * depth, *right = d_o + i * depth;
    float sum = 0;
    for (int64_t x = 0; x < depth; x += 4) {
      const auto four = [&](const T* row) {
        const auto at = [&](int64_t place) { return place < depth ? Load(row[place]) : 0.0f; };
        return make_float4(at(x), at(x + 1), at(x + 2), at(x + 3));
      };
      sum += DotOf4(four(left), four(right));
    }
    delta[i] = dlse == nullptr ? sum : sum - dlse[i];
  }
}

ffi::Error RunBackward(cudaStream_t stream, ffi::ScratchAllocator& scratch, const Task& task, Gradients in, void* dq,
                       void* dbias, const ffi::AnyBuffer* bias) {
  const Problem& p = task.problem;
  BackwardCall call{{}, Aligned(p.type, in.d_o, p.value_depth), in, dq, dbias, 0, 0, 0};
  if (ffi::Error error = MakeCommon(task, &call.common); error.failure()) return error;
  if (dbias != nullptr) {
    const auto dims = bias->dimensions();
    call.bias_batch = dims[0], call.bias_heads = dims[1], call.bias_queries = dims[2];
  }
  const auto memory = Floats(scratch, in.rows);
  if (!memory) return NoMemory();
  call.in.delta = *memory;
  const cudaError_t error = WithGpuType(p.type, [&](auto zero) {
    using T = decltype(zero);
    if (in.rows > 0) {
      Delta<T><<<tftoolkit::GridBlocks(Ceil(in.rows, kThreads), INT32_MAX), kThreads, 0, stream>>>(
          static_cast<const T*>(in.o), static_cast<const T*>(in.d_o), in.dlse, *memory, in.rows, p.value_depth);
      if (const cudaError_t failed = cudaGetLastError(); failed != cudaSuccess) return failed;
    }
    return LaunchBackward<T>(stream, call);
  });
  return Checked(error, "CUDA launch failed");
}

ffi::Error FlashAttention(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer q, ffi::AnyBuffer k,
                          ffi::AnyBuffer v, ffi::AnyBuffer bias, ffi::AnyBuffer lengths, ffi::Result<ffi::AnyBuffer> o,
                          ffi::Result<ffi::AnyBuffer> score_max, ffi::Result<ffi::AnyBuffer> inv_sum,
                          ffi::Result<ffi::AnyBuffer> lse, bool causal, bool has_bias, bool has_lengths, bool has_lse,
                          float scale, float softcap, int64_t window) {
  Task task{Tensors(q, k, v, {causal, window, scale, softcap}), {}};
  ffi::Error error = BatchedTask(stream, q, k, has_bias ? &bias : nullptr, has_lengths ? &lengths : nullptr, &task);
  if (error.failure()) return error;
  return RunForward(
      stream, scratch, task,
      {o->untyped_data(), Data<float>(score_max), Data<float>(inv_sum), has_lse ? Data<float>(lse) : nullptr},
      static_cast<int64_t>(score_max->element_count()));
}

ffi::Error FlashAttentionVarlen(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer q, ffi::AnyBuffer k,
                                ffi::AnyBuffer v, ffi::AnyBuffer q_borders, ffi::AnyBuffer k_borders,
                                ffi::Result<ffi::AnyBuffer> o, ffi::Result<ffi::AnyBuffer> score_max,
                                ffi::Result<ffi::AnyBuffer> inv_sum, ffi::Result<ffi::AnyBuffer> lse, bool causal,
                                bool has_lse, float scale, float softcap, int64_t window) {
  Task task{Tensors(q, k, v, {causal, window, scale, softcap}), {}};
  if (ffi::Error error = PackedTask(stream, q, k, q_borders, k_borders, &task); error.failure()) return error;
  return RunForward(
      stream, scratch, task,
      {o->untyped_data(), Data<float>(score_max), Data<float>(inv_sum), has_lse ? Data<float>(lse) : nullptr},
      static_cast<int64_t>(score_max->element_count()));
}

ffi::Error FlashAttentionGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer q, ffi::AnyBuffer k,
                              ffi::AnyBuffer v, ffi::AnyBuffer bias, ffi::AnyBuffer lengths, ffi::AnyBuffer o,
                              ffi::AnyBuffer score_max, ffi::AnyBuffer inv_sum, ffi::AnyBuffer d_o, ffi::AnyBuffer dlse,
                              ffi::Result<ffi::AnyBuffer> dq, ffi::Result<ffi::AnyBuffer> dk,
                              ffi::Result<ffi::AnyBuffer> dv, ffi::Result<ffi::AnyBuffer> dbias, bool biased,
                              bool causal, bool has_dbias, bool has_dlse, bool has_lengths, float scale, float softcap,
                              int64_t window) {
  if (has_dbias && !biased) return ffi::Error::InvalidArgument("has_dbias=True needs biased=True");
  Task task{Tensors(q, k, v, {causal, window, scale, softcap}), {}};
  ffi::Error error = BatchedTask(stream, q, k, biased ? &bias : nullptr, has_lengths ? &lengths : nullptr, &task);
  if (error.failure()) return error;
  return RunBackward(stream, scratch, task,
                     {static_cast<int64_t>(score_max.element_count()), o.untyped_data(), d_o.untyped_data(),
                      has_dlse ? Data<float>(dlse) : nullptr, Data<float>(score_max), Data<float>(inv_sum), nullptr,
                      dk->untyped_data(), dv->untyped_data(), nullptr},
                     dq->untyped_data(), has_dbias ? dbias->untyped_data() : nullptr, &bias);
}

ffi::Error FlashAttentionVarlenGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer q,
                                    ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer q_borders,
                                    ffi::AnyBuffer k_borders, ffi::AnyBuffer o, ffi::AnyBuffer score_max,
                                    ffi::AnyBuffer inv_sum, ffi::AnyBuffer d_o, ffi::AnyBuffer dlse,
                                    ffi::Result<ffi::AnyBuffer> dq, ffi::Result<ffi::AnyBuffer> dk,
                                    ffi::Result<ffi::AnyBuffer> dv, bool causal, bool has_dlse, float scale,
                                    float softcap, int64_t window) {
  Task task{Tensors(q, k, v, {causal, window, scale, softcap}), {}};
  if (ffi::Error error = PackedTask(stream, q, k, q_borders, k_borders, &task); error.failure()) return error;
  if (task.all.queries == 0) {  // borders mean nothing then
    cudaMemsetAsync(dk->untyped_data(), 0, dk->size_bytes(), stream);
    return Checked(cudaMemsetAsync(dv->untyped_data(), 0, dv->size_bytes(), stream), "CUDA memset failed");
  }
  return RunBackward(stream, scratch, task,
                     {static_cast<int64_t>(score_max.element_count()), o.untyped_data(), d_o.untyped_data(),
                      has_dlse ? Data<float>(dlse) : nullptr, Data<float>(score_max), Data<float>(inv_sum), nullptr,
                      dk->untyped_data(), dv->untyped_data(), nullptr},
                     dq->untyped_data(), nullptr, nullptr);
}

}  // namespace
}  // namespace gpu

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

XLA_FFI_DEFINE_HANDLER(FlashAttentionCuda, gpu::FlashAttention,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT.Attr<bool>("causal")
                           .Attr<bool>("has_bias")
                           .Attr<bool>("has_lengths")
                           .Attr<bool>("has_lse")
                           .Attr<float>("scale")
                           .Attr<float>("softcap")
                           .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER(FlashAttentionGradCuda, gpu::FlashAttentionGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT
                           .Attr<bool>("biased")
                           .Attr<bool>("causal")
                           .Attr<bool>("has_dbias")
                           .Attr<bool>("has_dlse")
                           .Attr<bool>("has_lengths")
                           .Attr<float>("scale")
                           .Attr<float>("softcap")
                           .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER(FlashAttentionVarlenCuda, gpu::FlashAttentionVarlen,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT.Attr<bool>("causal")
                           .Attr<bool>("has_lse")
                           .Attr<float>("scale")
                           .Attr<float>("softcap")
                           .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER(FlashAttentionVarlenGradCuda, gpu::FlashAttentionVarlenGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT
                           .Attr<bool>("causal")
                           .Attr<bool>("has_dlse")
                           .Attr<float>("scale")
                           .Attr<float>("softcap")
                           .Attr<int64_t>("window"));

TK_KERNEL(FlashAttention, CUDA, FlashAttentionCuda);
TK_KERNEL(FlashAttentionGrad, CUDA, FlashAttentionGradCuda);
TK_KERNEL(FlashAttentionVarlen, CUDA, FlashAttentionVarlenCuda);
TK_KERNEL(FlashAttentionVarlenGrad, CUDA, FlashAttentionVarlenGradCuda);
