// What CUDA's kernels get, and who launches those that are compiled for each dtype; see fused_linear_cross_entropy.cu.

#ifndef TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_H_
#define TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_H_

#include <cmath>
#include <cstdint>

#include "tftoolkit/cuda.h"
#include "tftoolkit/softmax_part.h"
#include "token.h"

namespace gpu {

using namespace tftoolkit::linear_cross_entropy;

namespace cuda = tftoolkit::cuda;

constexpr int64_t kTokens = 1024;  // in a chunk, at most
constexpr int64_t kTile = 128;     // of a product: so many tokens, classes or columns of the depth
constexpr int kThreads = 256;

using Part = tftoolkit::SoftmaxPart<float, float>;

// Found by a look at all labels.
struct Found {
  int64_t tokens;
  double class_weights;  // their sum
  double label_weights;  // the sum of those of the labels that count; 1 where it is 0
};

// Of all chunks. `parts` is [token of the chunk][tile], `logits` [token of the chunk][step]; null: not wanted.
struct Call {
  Terms terms;
  const void *inputs, *weight, *bias;  // bias may be null
  const Token* tokens;
  const Found* found;
  int64_t tiles, step;  // of classes; kTile times as many
  Part* parts;
  float* own;  // the logits of the labels
  float* logits;
  Factors* factors;
  bool inputs_packed, weight_packed;
};

// Some of the tokens.
struct Chunk {
  int64_t first, count;
  unsigned* largest;  // bits of a float: a bound of the gradients by the logits
};

// Where the gradients go. `sums` and `bias_sums`: of all chunks so far; those of a dtype of 16 bits need other memory
// than the result. `partial` is [part of the classes][token of the chunk][depth].
struct Into {
  void *dinputs, *dweight, *dbias;  // dbias may be null
  float *sums, *bias_sums, *partial;
  int64_t part, parts;  // classes in a part, a multiple of kTile; their number
  bool first, last;     // whether this chunk is
};

// Gradients by logits are stored times a power of 2, such that the largest is about 2^14 and float16 keeps what is a
// millionth of a millionth of it. Powers of 2 change no digits.
struct Unit {
  float up, down;
};

__device__ inline Unit UnitOf(const unsigned* largest) {
  const int exponent = static_cast<int>(*largest >> 23);  // 127 for 1
  const int up = *largest == 0 ? 0 : min(max(127 + 13 - exponent, -100), 100);
  return {ldexpf(1.0f, up), ldexpf(1.0f, -up)};
}

// In the files of the three dtypes; products take the most of the time.
template <typename T>
ffi::Error LaunchLogits(cudaStream_t stream, const Call& call, const Chunk& chunk);
template <typename T>
ffi::Error LaunchGradients(cudaStream_t stream, const Call& call, const Chunk& chunk, const Into& into);

}  // namespace gpu

#endif  // TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_H_
