// What is asked for: sequences with their labels, and all that can be wrong with them beside what the schemas see to.

#ifndef TFTOOLKIT_RNNT_LOSS_PROBLEM_H_
#define TFTOOLKIT_RNNT_LOSS_PROBLEM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tftoolkit/op.h"
#include "tftoolkit/sequence_arguments.h"

namespace tftoolkit {
namespace rnnt {

struct Sequence {
  int64_t frames, count;  // count: labels
  const int64_t* labels;

  bool Has(int64_t t, int64_t u) const { return t < frames && u <= count; }
};

// Positions: before the first label, behind each label.
struct Problem {
  FloatType type;
  int64_t batch, time, positions, classes, blank;
  float label_weight;  // of the gradient by labels' logarithms: 1 + lambda of FastEmit
  std::vector<int64_t> labels;
  std::vector<Sequence> sequences;

  int64_t Cell(int64_t b, int64_t t, int64_t u) const { return (b * time + t) * positions + u; }
};

// Returns what is wrong, or "". `of` has the classes as its last dimension and the frames as its second.
inline std::string MakeProblem(const ffi::AnyBuffer& of, const char* name, const ffi::AnyBuffer& labels,
                               const ffi::AnyBuffer& logit_lengths, const ffi::AnyBuffer& label_lengths, int64_t blank,
                               float fastemit, Problem& p) {
  const int64_t width = labels.dimensions()[1];
  p.type = FloatTypeOf(of);
  p.batch = labels.dimensions()[0], p.time = of.dimensions()[1], p.positions = width + 1;
  p.classes = of.dimensions().back(), p.blank = blank, p.label_weight = 1 + fastemit;
  if (p.batch == 0) return "";
  std::string wrong = CheckBlank(blank, p.classes, name);
  p.labels = WholeNumbers(labels);
  const std::vector<int64_t> frames = WholeNumbers(logit_lengths), counts = WholeNumbers(label_lengths);
  for (int64_t b = 0; b < p.batch && wrong.empty(); ++b) {
    const Sequence s{frames[b], counts[b], p.labels.data() + b * width};
    wrong = CheckLength("logit_lengths", b, s.frames, p.time, "the time dimension");
    if (wrong.empty()) wrong = CheckLength("label_lengths", b, s.count, width, "the last dimension of labels");
    for (int64_t k = 0; k < s.count && wrong.empty(); ++k) {
      if (IsLabel(s.labels[k], p.classes, blank)) continue;
      wrong = BadLabel(s.labels[k], p.classes, blank, name, std::to_string(b) + ", " + std::to_string(k));
    }
    p.sequences.push_back(s);
  }
  return wrong;
}

}  // namespace rnnt
}  // namespace tftoolkit

#endif  // TFTOOLKIT_RNNT_LOSS_PROBLEM_H_
