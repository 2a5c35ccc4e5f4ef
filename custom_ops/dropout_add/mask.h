// Which elements dropout keeps, on CPU and CUDA alike:
//
// An element is kept if 32 random bits are at least rate * 2^32. The bits of element i (counted through the tensor) are
// word i mod 4 of Philox4x32-10 at counter i / 4: a function of key and index alone, whatever the number of threads,
// and however rows are split. The key's numbers are 64 bits each: their lower halves are Philox's key, the upper ones
// the upper half of the counter.

#ifndef TFTOOLKIT_DROPOUT_ADD_MASK_H_
#define TFTOOLKIT_DROPOUT_ADD_MASK_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "tftoolkit/op.h"
#include "tftoolkit/philox.h"

namespace tftoolkit {
namespace dropout {

// Elements whose bits are at least `threshold` are kept, and multiplied by `scale`.
struct Rate {
  uint32_t threshold;
  float scale;
};

inline ffi::Error CheckedRate(double rate, Rate& checked) {
  if (!(rate >= 0 && rate < 1)) {
    return ffi::Error::InvalidArgument("rate must be at least 0 and less than 1, but is " + std::to_string(rate));
  }
  checked.threshold = static_cast<uint32_t>(std::min(std::round(rate * 4294967296.0), 4294967295.0));
  checked.scale = static_cast<float>(1 / (1 - rate));
  return ffi::Error::Success();
}

struct Key {
  uint32_t lower[2], upper[2];
};

// Numbers: an array, or what stands for one.
template <typename Numbers>
TK_INLINE Key SplitKey(const Numbers& numbers) {
  const uint64_t first = static_cast<uint64_t>(int64_t{numbers[0]}),
                 second = static_cast<uint64_t>(int64_t{numbers[1]});
  return {{static_cast<uint32_t>(first), static_cast<uint32_t>(second)},
          {static_cast<uint32_t>(first >> 32), static_cast<uint32_t>(second >> 32)}};
}

// The bits of elements 4 * counter and the following three.
TK_INLINE PhiloxWords FourBits(const Key& key, uint64_t counter) {
  return Philox({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), key.upper[0], key.upper[1]},
                key.lower[0], key.lower[1]);
}

}  // namespace dropout
}  // namespace tftoolkit

#endif  // TFTOOLKIT_DROPOUT_ADD_MASK_H_
