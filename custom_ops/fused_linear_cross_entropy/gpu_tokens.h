// What is found about tokens on CUDA, whatever the dtype; see fused_linear_cross_entropy.cu, where alone it is
// compiled.

#ifndef TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_TOKENS_H_
#define TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_TOKENS_H_

#include <cmath>

#include "gpu.h"

namespace gpu {
namespace {

constexpr int kListThreads = 512;

// Lists the tokens that count, and adds up class weights; one block.
__global__ void __launch_bounds__(kListThreads) List(Terms t, cuda::Integers labels, int64_t ignore_index,
                                                     Token* tokens, Found* found, unsigned long long* refused) {
  constexpr int kWarps = kListThreads / cuda::kWarp;
  __shared__ int warps[kWarps];
  const int lane = threadIdx.x % cuda::kWarp, warp = threadIdx.x / cuda::kWarp;
  double sums[2] = {0, 0};  // of the classes, of the labels
  for (int64_t c = threadIdx.x; c < t.classes; c += kListThreads) sums[0] += t.ClassWeight(c);
  int64_t before = 0;
  for (int64_t first = 0; first < t.rows; first += kListThreads) {
    const int64_t row = first + threadIdx.x, label = row < t.rows ? labels[row] : ignore_index;
    const bool is_class = label >= 0 && label < t.classes, counts = label != ignore_index && is_class;
    if (label != ignore_index && !is_class) atomicMin(refused, static_cast<unsigned long long>(row));
    const unsigned counting = __ballot_sync(0xffffffffu, counts);
    if (lane == 0) warps[warp] = __popc(counting);
    __syncthreads();
    int64_t place = before + __popc(counting & ((1u << lane) - 1));
    for (int i = 0; i < kWarps; ++i) {
      if (i < warp) place += warps[i];
      before += warps[i];
    }
    if (counts) {
      tokens[place] = {row, label};
      sums[1] += t.ClassWeight(label);
    }
    __syncthreads();  // before the counts are written anew
  }
  cuda::GroupSums<kListThreads>(sums);
  if (threadIdx.x == 0) *found = {before, sums[0], sums[1] == 0 ? 1 : sums[1]};
}

// Of each row; all null for the gradients' sake.
struct Losses {
  float *loss, *lse;
};

// By what losses and log-sum-exps are multiplied; null for the losses alone.
struct Upstream {
  const float *d_loss, *d_lse;
  bool mean;
};

using WidePart = tftoolkit::SoftmaxPart<double, double>;

// A warp for each token. terms: what each token of all gives to the total.
__global__ void __launch_bounds__(kThreads)
    FinishTokens(Call call, Chunk chunk, Losses losses, Upstream up, double* terms) {
  const bool wants_total = call.terms.smoothing != 0;
  const int lane = threadIdx.x % cuda::kWarp;
  const int64_t stride = int64_t{gridDim.x} * (kThreads / cuda::kWarp);
  for (int64_t token = int64_t{blockIdx.x} * (kThreads / cuda::kWarp) + threadIdx.x / cuda::kWarp; token < chunk.count;
       token += stride) {
    WidePart all{};
    for (int64_t tile = lane; tile < call.tiles; tile += cuda::kWarp) {
      const Part part = call.parts[token * call.tiles + tile];
      tftoolkit::Join(all, WidePart{part.shift, part.sum, part.total, part.weight}, wants_total);
    }
    for (int offset = cuda::kWarp / 2; offset > 0; offset /= 2) {
      const WidePart other{
          __shfl_down_sync(0xffffffffu, all.shift, offset), __shfl_down_sync(0xffffffffu, all.sum, offset),
          __shfl_down_sync(0xffffffffu, all.total, offset), __shfl_down_sync(0xffffffffu, all.weight, offset)};
      tftoolkit::Join(all, other, wants_total);
    }
    if (lane != 0) continue;
    const auto [row, label] = call.tokens[chunk.first + token];
    const double own = static_cast<double>(call.own[token]) - all.shift, weight = call.terms.ClassWeight(label);
    const Found found = *call.found;
    const Loss loss = LossOf(call.terms, all.shift, all.sum, all.total, own, weight, found.class_weights);
    if (losses.loss != nullptr) {
      losses.loss[row] = static_cast<float>(loss.value);
      losses.lse[row] = static_cast<float>(loss.lse());
      terms[chunk.first + token] = losses.loss[row];
      continue;
    }
    const double d_loss = up.mean ? up.d_loss[row] / found.label_weights : up.d_loss[row];
    const Factors factors = FactorsOf(call.terms, loss, d_loss, up.d_lse[row], weight, found.class_weights);
    call.factors[token] = factors;
    terms[chunk.first + token] = d_loss * loss.value;
    const double even = factors.even * found.class_weights;
    const float bound = static_cast<float>(std::fabs(factors.scale) + std::fabs(factors.own) + std::fabs(even));
    if (std::isfinite(bound)) atomicMax(chunk.largest, __float_as_uint(bound));  // does not depend on their order
  }
}

// total_weight may be null. One block.
__global__ void __launch_bounds__(kListThreads)
    Total(const double* terms, int64_t count, const Found* found, float* total, float* total_weight) {
  double sums[1] = {0};
  for (int64_t i = threadIdx.x; i < count; i += kListThreads) sums[0] += terms[i];
  cuda::GroupSums<kListThreads>(sums);
  if (threadIdx.x != 0) return;
  *total = static_cast<float>(sums[0]);
  if (total_weight != nullptr) *total_weight = static_cast<float>(found->label_weights);
}

}  // namespace
}  // namespace gpu

#endif  // TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_TOKENS_H_
