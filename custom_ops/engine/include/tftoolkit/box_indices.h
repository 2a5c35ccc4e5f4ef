// The picture that each box belongs to, for kernels on the CPU.

#ifndef TFTOOLKIT_BOX_INDICES_H_
#define TFTOOLKIT_BOX_INDICES_H_

#include <string>
#include <vector>

#include "tftoolkit/dispatch.h"

namespace tftoolkit {

// Reads box_indices, or returns an error that names the first that is no picture of `batch`.
inline ffi::Error ReadBoxIndices(const char* op, const ffi::AnyBuffer& given, int64_t batch,
                                 std::vector<int64_t>& indices) {
  indices.resize(given.element_count());
  return WithIntegerType(op, given.element_type(), [&](auto type) {
    const auto* from = Data<decltype(type)>(given);
    for (size_t i = 0; i < indices.size(); ++i) {
      indices[i] = from[i];
      if (indices[i] >= 0 && indices[i] < batch) continue;
      return ffi::Error::InvalidArgument("box_indices holds " + std::to_string(indices[i]) + " (element " +
                                         std::to_string(i) + "), but must hold numbers from 0 to below " +
                                         std::to_string(batch) + ", the first dimension of features");
    }
    return ffi::Error::Success();
  });
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_BOX_INDICES_H_
