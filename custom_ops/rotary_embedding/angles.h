// What the rotary embedding's kernels for CPU and CUDA have in common: which arguments they take.

#ifndef TFTOOLKIT_ROTARY_EMBEDDING_ANGLES_H_
#define TFTOOLKIT_ROTARY_EMBEDDING_ANGLES_H_

#include <cstdint>
#include <string>

#include "tftoolkit/op.h"

namespace tftoolkit {
namespace rotary {

constexpr int64_t kLimit = int64_t{1} << 31;  // of positions: beyond, float64 has too few digits for the angle

// Sets `dim` to what it stands for if it is 0.
inline ffi::Error CheckNumbers(int64_t depth, double base, int64_t start, int64_t& dim) {
  dim = dim == 0 ? depth : dim;
  if (dim < 0 || dim % 2 != 0 || dim > depth) {
    return ffi::Error::InvalidArgument("dim must be even and from 2 to the depth of x, " + std::to_string(depth) +
                                       ", but is " + std::to_string(dim));
  }
  if (!(base > 0)) return ffi::Error::InvalidArgument("base must be positive, but is " + std::to_string(base));
  if (start < -kLimit || start > kLimit) {
    return ffi::Error::InvalidArgument("start must fit into 32 bits, but is " + std::to_string(start));
  }
  return ffi::Error::Success();
}

inline ffi::Error CheckRows(int64_t rows, int64_t batch) {
  if (rows == 1 || rows == batch) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("positions has " + std::to_string(rows) + " rows, but must have 1 or, as x, " +
                                     std::to_string(batch));
}

inline ffi::Error BadPosition(int64_t position) {
  return ffi::Error::InvalidArgument("positions must fit into 32 bits, beyond which angles are noise, but one is " +
                                     std::to_string(position));
}

}  // namespace rotary
}  // namespace tftoolkit

#endif  // TFTOOLKIT_ROTARY_EMBEDDING_ANGLES_H_
