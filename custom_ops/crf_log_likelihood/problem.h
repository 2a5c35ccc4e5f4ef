// What the kernels of linear-chain CRFs are called with, checked.

#ifndef TFTOOLKIT_CRF_PROBLEM_H_
#define TFTOOLKIT_CRF_PROBLEM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/op.h"

namespace tftoolkit {
namespace crf {

inline ffi::Error Wrong(const std::string& text) { return ffi::Error::InvalidArgument(text); }

inline std::string Range(int64_t end) { return "from 0 to below " + std::to_string(end); }

// A buffer of whole numbers, widened.
inline ffi::Error Whole(const char* op, const ffi::AnyBuffer& buffer, std::vector<int64_t>& to) {
  return WithIntegerType(op, buffer.element_type(), [&](auto type) {
    const auto* from = Data<decltype(type)>(buffer);
    to.assign(from, from + buffer.element_count());
    return ffi::Error::Success();
  });
}

// Sizes and scores. Logits are read by those who know their type.
struct Problem {
  int64_t batch, time, states;
  std::vector<int64_t> lengths;
  const float* transitions;  // [states, states], from row to column
  const float* start;        // [states] or nullptr
  const float* end;

  float StartOf(int64_t state) const { return start == nullptr ? 0 : start[state]; }
  float EndOf(int64_t state) const { return end == nullptr ? 0 : end[state]; }
};

inline ffi::Error ReadProblem(const char* op, const ffi::AnyBuffer& logits, const ffi::AnyBuffer& lengths,
                              const ffi::AnyBuffer& transitions, const ffi::AnyBuffer* start, const ffi::AnyBuffer* end,
                              Problem& p) {
  const auto dims = logits.dimensions();
  p.batch = dims[0], p.time = dims[1], p.states = dims[2];
  p.transitions = Data<float>(transitions);
  p.start = start == nullptr ? nullptr : Data<float>(*start);
  p.end = end == nullptr ? nullptr : Data<float>(*end);
  if (ffi::Error error = Whole(op, lengths, p.lengths); error.failure()) return error;
  for (int64_t b = 0; b < p.batch; ++b) {
    if (p.lengths[b] < 0 || p.lengths[b] > p.time) {
      return Wrong("lengths holds " + std::to_string(p.lengths[b]) + " (element " + std::to_string(b) +
                   "), but must be from 0 to " + std::to_string(p.time) + ", the second dimension of logits");
    }
    if (p.lengths[b] > 0 && p.states == 0) return Wrong("a sequence is not empty, but logits has no states");
  }
  return ffi::Error::Success();
}

// The tags of all sequences, [batch, time]; those behind a sequence's end may be anything.
inline ffi::Error ReadTags(const char* op, const ffi::AnyBuffer& given, const Problem& p, std::vector<int64_t>& tags) {
  if (ffi::Error error = Whole(op, given, tags); error.failure()) return error;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t t = 0; t < p.lengths[b]; ++t) {
      const int64_t tag = tags[b * p.time + t];
      if (tag >= 0 && tag < p.states) continue;
      return Wrong("tags holds " + std::to_string(tag) + " (sequence " + std::to_string(b) + ", place " +
                   std::to_string(t) + "), but must hold states, " + Range(p.states) +
                   ", the last dimension of logits");
    }
  }
  return ffi::Error::Success();
}

}  // namespace crf
}  // namespace tftoolkit

#endif  // TFTOOLKIT_CRF_PROBLEM_H_
