// Lengths and labels of padded sequences: read from either type of whole number, and what can be wrong with them.

#ifndef TFTOOLKIT_SEQUENCE_ARGUMENTS_H_
#define TFTOOLKIT_SEQUENCE_ARGUMENTS_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/op.h"

namespace tftoolkit {

inline FloatType FloatTypeOf(const ffi::AnyBuffer& buffer) {
  const ffi::DataType dtype = buffer.element_type();
  return dtype == ffi::F32 ? FloatType::kFloat : dtype == ffi::BF16 ? FloatType::kBFloat16 : FloatType::kHalf;
}

inline std::vector<int64_t> WholeNumbers(const ffi::AnyBuffer& buffer) {
  std::vector<int64_t> numbers(buffer.element_count());
  (void)WithIntegerType("a loss", buffer.element_type(), [&](auto type) {
    std::copy_n(Data<decltype(type)>(buffer), numbers.size(), numbers.begin());
    return ffi::Error::Success();
  });
  return numbers;
}

// Functions that return what is wrong, or "".

// `length` is element i of `name` and must be from 0 to `most`, which is `of`.
inline std::string CheckLength(const char* name, int64_t i, int64_t length, int64_t most, const char* of) {
  if (length >= 0 && length <= most) return "";
  return std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(length) + ", but must be from 0 to " +
         std::to_string(most) + ", " + of;
}

inline std::string CheckBlank(int64_t blank, int64_t classes, const char* of) {
  if (blank >= 0 && blank < classes) return "";
  return "blank is " + std::to_string(blank) + ", but must be a class, from 0 to below " + std::to_string(classes) +
         ", the last dimension of " + of;
}

inline bool IsLabel(int64_t label, int64_t classes, int64_t blank) {
  return label >= 0 && label < classes && label != blank;
}

// What is wrong with a label that is none. `place` is written into the brackets behind "labels".
inline std::string BadLabel(int64_t label, int64_t classes, int64_t blank, const char* of, const std::string& place) {
  const std::string begin = "labels[" + place + "] is " + std::to_string(label);
  if (label == blank) return begin + ", the blank; labels must be other classes";
  return begin + ", but must be a class, from 0 to below " + std::to_string(classes) + ", the last dimension of " + of;
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_SEQUENCE_ARGUMENTS_H_
