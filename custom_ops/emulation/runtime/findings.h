// Words of findings that several files use.

#ifndef TFTOOLKIT_EMULATION_FINDINGS_H_
#define TFTOOLKIT_EMULATION_FINDINGS_H_

#include <string>

#include "tftoolkit/emulation/vector_types.h"

namespace tftoolkit::emulation {

// "(0, 1, 0)"
std::string Triple(uint3 index);

}  // namespace tftoolkit::emulation

#endif  // TFTOOLKIT_EMULATION_FINDINGS_H_
