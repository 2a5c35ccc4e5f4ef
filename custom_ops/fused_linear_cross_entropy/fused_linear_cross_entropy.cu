// Cross-entropy of softmax(inputs weight^T + bias) and its gradients on CUDA; the maths stands in
// fused_linear_cross_entropy.cc and token.h.
//
// Tokens that count are listed first, in their order, so that ignored ones cost nothing but their zeros, and the
// products have only full tiles. One block does that, since it is little beside the products (8 bytes read and up to 16
// written for each token), and finds the labels that are no classes; the host waits for it (some ten microseconds, and
// its lead over the GPU), once for each op.
//
// Chunks of 1024 tokens, in float32 of 256, are taken one after the other. Logits: a product whose blocks also find
// what their 128 classes add up to, so that losses alone need no logits in memory; those of a chunk are kept, in
// float32, for gradients. Losses: a warp for each token joins the sums of its tiles, in their order, and finds the
// factors of its gradients. Gradients by the logits then take their place, in the dtype of the inputs. Products with
// the weight, the classes cut into parts where there would be few blocks, and with the inputs give the gradients; that
// by the weight is summed up over chunks in float32. No atomics on floats: the order of sums follows from the shape and
// the number of tokens.
//
// The floor is arithmetic, 2 N V D operations for losses, 6 N V D with gradients, and they are what is done, in tiles
// of 128. Memory traffic per chunk: the weight twice, its gradient twice in float32, and a chunk's logits some 4 times:
// by its data sheet an H100 needs for that half the time of the products in bfloat16, most of it side by side with
// them. Nobody has measured it yet. Memory: 4096 bytes times V for the logits of a chunk (1024 in float32), and in 16
// bits, for several chunks, 4 V D bytes for the sums.
//
// gpu.h: what kernels get. gpu_tokens.h: what does not depend on the dtype. gpu_logits.h, gpu_gradients.h: what is
// compiled for each dtype in a file of its own.

#include <algorithm>
#include <optional>
#include <string>

#include "gpu.h"
#include "gpu_tokens.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/grid.h"
#include "tftoolkit/op.h"

namespace gpu {
namespace {

using tftoolkit::Data;
using Result = ffi::Result<ffi::AnyBuffer>;

constexpr int64_t kBlocks = 256;  // of a product, where the inner dimension can be cut
constexpr int64_t kMostParts = 64;

// In a chunk. In float32 arithmetic takes longer and hides more traffic, and shorter sums are more exact.
int64_t TokensAtOnce(ffi::DataType type) { return type == ffi::F32 ? kTokens / 4 : kTokens; }

// Memory of an op that its kernels share, until it ends. Once there was none, `failed`.
class Memory {
 public:
  explicit Memory(ffi::ScratchAllocator& scratch) : scratch_(scratch) {}

  template <typename T>
  T* Get(int64_t count) {
    const std::optional<void*> memory = scratch_.Allocate(std::max<int64_t>(1, count) * sizeof(T));
    failed_ = failed_ || !memory;
    return memory ? static_cast<T*>(*memory) : nullptr;
  }
  bool failed() const { return failed_; }

 private:
  ffi::ScratchAllocator& scratch_;
  bool failed_ = false;
};

ffi::Error NoMemory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no GPU memory for partial results"); }

struct Settings {
  int64_t ignore_index;
  float label_smoothing, logit_softcap, z_loss;
};

// An op's tensors, and what it found about its labels.
struct Task {
  ffi::DataType type;
  Call call;
  int64_t tokens;   // that count
  int64_t at_once;  // tokens in a chunk, at most
  double* terms;    // of the total
};

ffi::Error Prepare(cudaStream_t stream, ffi::ScratchAllocator& scratch, const ffi::AnyBuffer& inputs,
                   const ffi::AnyBuffer& weight, const ffi::AnyBuffer* bias, const ffi::AnyBuffer& labels,
                   const ffi::AnyBuffer* class_weight, const Settings& s, Task& task) {
  Memory memory(scratch);
  const int64_t rows = static_cast<int64_t>(labels.element_count());
  Token* tokens = memory.Get<Token>(rows);
  Found* found = memory.Get<Found>(1);
  const cuda::Refusal refusal(stream, scratch, cuda::Integers(labels));
  if (memory.failed() || refusal.first() == nullptr) return NoMemory();
  const int64_t classes = weight.dimensions()[0], depth = weight.dimensions()[1];
  task.type = inputs.element_type();
  const int64_t in_pack = task.type == ffi::F32 ? 4 : 8;
  const auto packed = [&](const ffi::AnyBuffer& x) {
    return depth % in_pack == 0 && reinterpret_cast<uintptr_t>(x.untyped_data()) % 16 == 0;
  };
  Call& call = task.call;
  call = {};
  call.terms = {rows,
                depth,
                classes,
                s.label_smoothing,
                s.z_loss,
                s.logit_softcap,
                class_weight == nullptr ? nullptr : Data<float>(*class_weight)};
  call.inputs = inputs.untyped_data();
  call.weight = weight.untyped_data();
  call.bias = bias == nullptr ? nullptr : bias->untyped_data();
  call.inputs_packed = packed(inputs);
  call.weight_packed = packed(weight);
  call.tokens = tokens;
  call.found = found;
  call.tiles = cuda::Ceil(classes, kTile);
  call.step = call.tiles * kTile;
  List<<<1, kListThreads, 0, stream>>>(call.terms, cuda::Integers(labels), s.ignore_index, tokens, found,
                                       refusal.first());
  if (ffi::Error wrong =
          refusal.Wait([&](int64_t index, int64_t label) { return BadLabel(index, label, classes, s.ignore_index); });
      wrong.failure()) {
    return wrong;
  }
  if (ffi::Error failed = cuda::Fetch(stream, &found->tokens, task.tokens); failed.failure()) return failed;
  task.at_once = std::min(TokensAtOnce(task.type), task.tokens);
  call.parts = memory.Get<Part>(task.at_once * call.tiles);
  call.own = memory.Get<float>(task.at_once);
  task.terms = memory.Get<double>(task.tokens);
  return memory.failed() ? NoMemory() : ffi::Error::Success();
}

// The logits of a chunk, as far as they are wanted, and what comes of its tokens.
ffi::Error RunChunk(cudaStream_t stream, const Task& task, const Chunk& chunk, const Losses& losses,
                    const Upstream& up) {
  ffi::Error failed = tftoolkit::WithFloatType("FusedLinearCrossEntropy", task.type, [&](auto zero) {
    return LaunchLogits<decltype(zero)>(stream, task.call, chunk);
  });
  if (failed.failure()) return failed;
  FinishTokens<<<tftoolkit::GridBlocks(cuda::Ceil(chunk.count, kThreads / cuda::kWarp), kTokens), kThreads, 0,
                 stream>>>(task.call, chunk, losses, up, task.terms);
  return cuda::Launched();
}

ffi::Error FinishTotal(cudaStream_t stream, const Task& task, float* total, float* total_weight) {
  Total<<<1, kListThreads, 0, stream>>>(task.terms, task.tokens, task.call.found, total, total_weight);
  return cuda::Launched();
}

ffi::Error FusedLinearCrossEntropy(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer inputs,
                                   ffi::AnyBuffer weight, ffi::AnyBuffer bias, ffi::AnyBuffer labels,
                                   ffi::AnyBuffer class_weight, Result loss, Result lse, Result total,
                                   Result total_weight, bool has_bias, bool has_class_weight, int64_t ignore_index,
                                   float label_smoothing, float logit_softcap, float z_loss) {
  Task task;
  if (ffi::Error failed = Prepare(stream, scratch, inputs, weight, has_bias ? &bias : nullptr, labels,
                                  has_class_weight ? &class_weight : nullptr,
                                  {ignore_index, label_smoothing, logit_softcap, z_loss}, task);
      failed.failure()) {
    return failed;
  }
  if (task.tokens < task.call.terms.rows) {
    cudaMemsetAsync(Data<float>(loss), 0, loss->size_bytes(), stream);
    cudaMemsetAsync(Data<float>(lse), 0, lse->size_bytes(), stream);
  }
  const Losses losses{Data<float>(loss), Data<float>(lse)};
  for (int64_t first = 0; first < task.tokens; first += task.at_once) {
    const Chunk chunk{first, std::min(task.at_once, task.tokens - first), nullptr};
    if (ffi::Error failed = RunChunk(stream, task, chunk, losses, {}); failed.failure()) return failed;
  }
  return FinishTotal(stream, task, Data<float>(total), Data<float>(total_weight));
}

// Memory for the gradients' sake, and how the classes are cut.
ffi::Error PrepareGradients(cudaStream_t stream, ffi::ScratchAllocator& scratch, Task& task, Into& into,
                            unsigned** largest) {
  Memory memory(scratch);
  const Terms& t = task.call.terms;
  const int64_t at_once = task.at_once, chunks = cuda::Ceil(task.tokens, at_once);
  const int64_t blocks = TokensAtOnce(task.type) / kTile * std::max<int64_t>(1, cuda::Ceil(t.depth, kTile));
  const int64_t parts = std::clamp<int64_t>(kBlocks / blocks, 1, kMostParts);
  into.part = cuda::Ceil(task.call.tiles, parts) * kTile;
  into.parts = cuda::Ceil(t.classes, into.part);
  into.partial = memory.Get<float>(into.parts * at_once * t.depth);
  task.call.logits = memory.Get<float>(at_once * task.call.step);
  task.call.factors = memory.Get<Factors>(at_once);
  *largest = memory.Get<unsigned>(chunks);
  into.sums = static_cast<float*>(into.dweight);
  into.bias_sums = static_cast<float*>(into.dbias);
  if (task.type != ffi::F32 && chunks > 1) {
    into.sums = memory.Get<float>(t.classes * t.depth);
    into.bias_sums = into.dbias == nullptr ? nullptr : memory.Get<float>(t.classes);
  }
  if (memory.failed()) return NoMemory();
  cudaMemsetAsync(*largest, 0, chunks * sizeof(unsigned), stream);
  return ffi::Error::Success();
}

ffi::Error RunGradients(cudaStream_t stream, ffi::ScratchAllocator& scratch, Task& task, const Upstream& up,
                        Into into) {
  unsigned* largest = nullptr;
  if (ffi::Error failed = PrepareGradients(stream, scratch, task, into, &largest); failed.failure()) return failed;
  for (int64_t first = 0; first < task.tokens; first += task.at_once) {
    const Chunk chunk{first, std::min(task.at_once, task.tokens - first), largest + first / task.at_once};
    if (ffi::Error failed = RunChunk(stream, task, chunk, {}, up); failed.failure()) return failed;
    into.first = first == 0;
    into.last = first + task.at_once >= task.tokens;
    ffi::Error failed = tftoolkit::WithFloatType("FusedLinearCrossEntropyGrad", task.type, [&](auto zero) {
      return LaunchGradients<decltype(zero)>(stream, task.call, chunk, into);
    });
    if (failed.failure()) return failed;
  }
  return ffi::Error::Success();
}

ffi::Error FusedLinearCrossEntropyGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer inputs,
                                       ffi::AnyBuffer weight, ffi::AnyBuffer bias, ffi::AnyBuffer labels,
                                       ffi::AnyBuffer class_weight, ffi::AnyBuffer d_loss, ffi::AnyBuffer d_lse,
                                       Result dinputs, Result dweight, Result dbias, Result total, bool biased,
                                       bool has_class_weight, bool has_dbias, int64_t ignore_index,
                                       float label_smoothing, float logit_softcap, bool mean, float z_loss) {
  if (ffi::Error wrong = CheckBias(biased, has_dbias, bias, weight); wrong.failure()) return wrong;
  Task task;
  if (ffi::Error failed = Prepare(stream, scratch, inputs, weight, biased ? &bias : nullptr, labels,
                                  has_class_weight ? &class_weight : nullptr,
                                  {ignore_index, label_smoothing, logit_softcap, z_loss}, task);
      failed.failure()) {
    return failed;
  }
  if (task.tokens < task.call.terms.rows) cudaMemsetAsync(dinputs->untyped_data(), 0, dinputs->size_bytes(), stream);
  if (task.tokens == 0) {
    cudaMemsetAsync(dweight->untyped_data(), 0, dweight->size_bytes(), stream);
    if (has_dbias) cudaMemsetAsync(dbias->untyped_data(), 0, dbias->size_bytes(), stream);
  } else {
    Into into{};
    into.dinputs = dinputs->untyped_data();
    into.dweight = dweight->untyped_data();
    into.dbias = has_dbias ? dbias->untyped_data() : nullptr;
    const Upstream up{Data<float>(d_loss), Data<float>(d_lse), mean};
    if (ffi::Error failed = RunGradients(stream, scratch, task, up, into); failed.failure()) return failed;
  }
  return FinishTotal(stream, task, Data<float>(total), nullptr);
}

}  // namespace
}  // namespace gpu

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

// Not command-buffer compatible: they wait, and what they launch depends on the labels.
XLA_FFI_DEFINE_HANDLER(FusedLinearCrossEntropyCuda, gpu::FusedLinearCrossEntropy,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT.Attr<bool>("has_bias")
                           .Attr<bool>("has_class_weight")
                           .Attr<int64_t>("ignore_index")
                           .Attr<float>("label_smoothing")
                           .Attr<float>("logit_softcap")
                           .Attr<float>("z_loss"));

XLA_FFI_DEFINE_HANDLER(FusedLinearCrossEntropyGradCuda, gpu::FusedLinearCrossEntropyGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT
                           .Attr<bool>("biased")
                           .Attr<bool>("has_class_weight")
                           .Attr<bool>("has_dbias")
                           .Attr<int64_t>("ignore_index")
                           .Attr<float>("label_smoothing")
                           .Attr<float>("logit_softcap")
                           .Attr<bool>("mean")
                           .Attr<float>("z_loss"));

TK_KERNEL(FusedLinearCrossEntropy, CUDA, FusedLinearCrossEntropyCuda);
TK_KERNEL(FusedLinearCrossEntropyGrad, CUDA, FusedLinearCrossEntropyGradCuda);
