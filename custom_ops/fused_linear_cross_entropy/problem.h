// What fused_linear_cross_entropy is asked to compute, for the kernels of every instruction set.

#ifndef TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_PROBLEM_H_
#define TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_PROBLEM_H_

#include <cstdint>
#include <numeric>
#include <vector>

#include "tftoolkit/float_types.h"
#include "token.h"

namespace tftoolkit {
namespace linear_cross_entropy {

// inputs is [rows, depth], weight [classes, depth], bias [classes] or null, class_weight [classes] or null.
struct Problem : Terms {
  tftoolkit::FloatType type;
  const void *inputs, *weight, *bias;
  double weight_sum;  // of the classes, 1 each where there is no class_weight
  std::vector<Token> tokens;

  double WeightSum(int64_t from, int64_t to) const {
    if (class_weight == nullptr) return static_cast<double>(to - from);
    return std::accumulate(class_weight + from, class_weight + to, 0.0);
  }
};

// Of each row; 0 where the label is ignored.
struct Losses {
  float *loss, *lse;
};

// By the losses, to be multiplied by `share`, and by the log-sum-exps of each row; what comes of it. dbias may be null.
struct Gradients {
  const float *d_loss;
  double share;
  const float *d_lse;
  void *dinputs, *dweight, *dbias;
  double total;  // comes out: the sum of share times d_loss times the losses
};

}  // namespace linear_cross_entropy
}  // namespace tftoolkit

#endif  // TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_PROBLEM_H_
