// How many blocks to launch of a kernel that strides over its grid.

#ifndef TFTOOLKIT_GRID_H_
#define TFTOOLKIT_GRID_H_

#include <algorithm>
#include <cstdint>

#ifdef TK_EMULATED
#include "tftoolkit/emulation/device.h"
#endif

namespace tftoolkit {

// `wanted` blocks, one for each piece of work, or `most` (at most 2^31 - 1) that each take several. Emulation may be
// told to give fewer, so that small tests reach the blocks' second round.
inline unsigned GridBlocks(int64_t wanted, int64_t most) {
  const int64_t blocks = std::min(wanted, most);
#ifdef TK_EMULATED
  return static_cast<unsigned>(emulation::LimitBlocks(blocks));
#else
  return static_cast<unsigned>(blocks);
#endif
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_GRID_H_
