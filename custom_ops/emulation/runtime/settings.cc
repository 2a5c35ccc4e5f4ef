#include "settings.h"

#include <cstdlib>

namespace tftoolkit::emulation {
namespace {

int64_t Number(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atoll(text);
}

}  // namespace

Settings ReadSettings() {
  return {static_cast<uint64_t>(Number("TFTOOLKIT_EMULATION_SEED")), Number("TFTOOLKIT_EMULATION_MAX_BLOCKS")};
}

}  // namespace tftoolkit::emulation
