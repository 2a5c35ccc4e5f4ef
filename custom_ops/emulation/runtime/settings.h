// What can be set about emulated runs; Python's `emulation.settings` sets it.

#ifndef TFTOOLKIT_EMULATION_SETTINGS_H_
#define TFTOOLKIT_EMULATION_SETTINGS_H_

#include <cstdint>

namespace tftoolkit::emulation {

struct Settings {
  uint64_t seed = 0;       // of the order in which blocks, warps and lanes run; 0: by number
  int64_t max_blocks = 0;  // what tftoolkit::GridBlocks gives at most; 0: what the kernel asks for
};

// From $TFTOOLKIT_EMULATION_SEED and $TFTOOLKIT_EMULATION_MAX_BLOCKS, at each call.
Settings ReadSettings();

}  // namespace tftoolkit::emulation

#endif  // TFTOOLKIT_EMULATION_SETTINGS_H_
