// What is asked for: sequences with their labels, and all that can be wrong with them beside what the schemas see to.

#ifndef TFTOOLKIT_CTC_LOSS_PROBLEM_H_
#define TFTOOLKIT_CTC_LOSS_PROBLEM_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tftoolkit/op.h"
#include "tftoolkit/sequence_arguments.h"

namespace tftoolkit {
namespace ctc {

constexpr int64_t kPad = 32;  // labels behind the last one, which vectors may read

struct Sequence {
  int64_t frames, count;  // count: labels
  const int64_t* labels;  // [count + kPad]
  const float* repeats;   // [count + kPad]: minus infinity where a label is that before it, and for the first, else 0

  // States come in pairs: blank k and behind it label k, k from 0 to count. At frame t those are computed from which
  // the end can be reached and which can be reached: at most one label a frame. Repeated labels need a frame more,
  // which nobody counts here.
  int64_t First(int64_t t) const { return std::max<int64_t>(0, count - frames + t); }
  int64_t Last(int64_t t) const { return std::min(count, t); }
};

struct Problem {
  FloatType type;
  const void* logits;
  int64_t batch, time, classes, blank;
  std::vector<Sequence> sequences;
  std::vector<int64_t> labels;
  std::vector<float> repeats;

  int64_t Row(int64_t b, int64_t t) const { return (b * time + t) * classes; }
  int64_t MostLabels() const {
    int64_t most = 0;
    for (const Sequence& s : sequences) most = std::max(most, s.count);
    return most;
  }
};

inline std::string ShapeText(const ffi::AnyBuffer& buffer) {
  std::string text;
  for (const int64_t dim : buffer.dimensions()) text += (text.empty() ? "" : ", ") + std::to_string(dim);
  return "[" + text + "]";
}

// The labels of sequence b, element `begin` and following, become part of the problem. Returns what is wrong with them.
inline std::string AddLabels(const std::vector<int64_t>& given, int64_t begin, int64_t b, bool padded, Problem& p) {
  Sequence& s = p.sequences[b];
  for (int64_t k = 0; k < s.count; ++k) {
    const int64_t label = given[begin + k];
    if (!IsLabel(label, p.classes, p.blank)) {
      const std::string place = padded ? std::to_string(b) + ", " + std::to_string(k) : std::to_string(begin + k);
      return BadLabel(label, p.classes, p.blank, "logits", place);
    }
    const bool repeats = k == 0 || label == given[begin + k - 1];
    p.labels.push_back(label);
    p.repeats.push_back(repeats ? -std::numeric_limits<float>::infinity() : 0.0f);
  }
  p.labels.insert(p.labels.end(), kPad, p.blank);
  p.repeats.insert(p.repeats.end(), kPad, -std::numeric_limits<float>::infinity());
  return "";
}

// What is wrong with shapes and blank, or "".
inline std::string CheckShapes(const ffi::AnyBuffer& logits, const ffi::AnyBuffer& labels, int64_t blank) {
  const int64_t batch = logits.dimensions()[0], classes = logits.dimensions()[2];
  const size_t rank = labels.dimensions().size();
  if ((rank != 1 && rank != 2) || (rank == 2 && labels.dimensions()[0] != batch)) {
    return "labels has shape " + ShapeText(labels) + ", but must be [" + std::to_string(batch) +
           ", labels], or [values] with the labels of all sequences one behind the other";
  }
  return batch > 0 ? CheckBlank(blank, classes, "logits") : "";
}

// Returns what is wrong, or "".
inline std::string MakeProblem(const ffi::AnyBuffer& logits, const ffi::AnyBuffer& labels,
                               const ffi::AnyBuffer& logit_lengths, const ffi::AnyBuffer& label_lengths, int64_t blank,
                               Problem& p) {
  const auto dims = logits.dimensions();
  p.type = FloatTypeOf(logits);
  p.logits = logits.untyped_data();
  p.batch = dims[0], p.time = dims[1], p.classes = dims[2], p.blank = blank;
  if (std::string wrong = CheckShapes(logits, labels, blank); !wrong.empty() || p.batch == 0) return wrong;
  const size_t rank = labels.dimensions().size();
  const std::vector<int64_t> given = WholeNumbers(labels), frames = WholeNumbers(logit_lengths),
                             counts = WholeNumbers(label_lengths);
  const int64_t values = static_cast<int64_t>(given.size()), width = rank == 2 ? labels.dimensions()[1] : 0;
  p.sequences.resize(p.batch);
  p.labels.reserve(values + p.batch * kPad);
  p.repeats.reserve(values + p.batch * kPad);
  int64_t begin = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    std::string wrong = CheckLength("logit_lengths", b, frames[b], p.time, "the time dimension of logits");
    if (wrong.empty()) {
      wrong = rank == 2 ? CheckLength("label_lengths", b, counts[b], width, "the last dimension of labels")
                        : CheckLength("label_lengths", b, counts[b], values - begin, "the labels that are left");
    }
    if (!wrong.empty()) return wrong;
    if (rank == 2) begin = b * width;
    p.sequences[b] = {frames[b], counts[b], nullptr, nullptr};
    if (wrong = AddLabels(given, begin, b, rank == 2, p); !wrong.empty()) return wrong;
    begin += counts[b];
  }
  if (rank == 1 && begin != values) {
    return "labels has " + std::to_string(values) + " values, but label_lengths adds up to " + std::to_string(begin);
  }
  int64_t at = 0;
  for (Sequence& s : p.sequences) {
    s.labels = p.labels.data() + at;
    s.repeats = p.repeats.data() + at;
    at += s.count + kPad;
  }
  return "";
}

}  // namespace ctc
}  // namespace tftoolkit

#endif  // TFTOOLKIT_CTC_LOSS_PROBLEM_H_
