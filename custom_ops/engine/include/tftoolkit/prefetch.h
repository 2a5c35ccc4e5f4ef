// Asking for memory long before it is used.

#ifndef TFTOOLKIT_PREFETCH_H_
#define TFTOOLKIT_PREFETCH_H_

#include <algorithm>
#include <cstdint>

#include "tftoolkit/float_types.h"

namespace tftoolkit {

// For rows that lie anywhere in memory: the processor would wait for each.
template <bool kWrite = false>
TK_INLINE void Prefetch(const void* row, int64_t bytes) {
  constexpr int64_t kLine = 64, kMost = 1024;  // what comes behind, the processor fetches by itself
  const char* from = static_cast<const char*>(row);
  for (int64_t at = 0; at < std::min(bytes, kMost); at += kLine) __builtin_prefetch(from + at, kWrite);
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_PREFETCH_H_
