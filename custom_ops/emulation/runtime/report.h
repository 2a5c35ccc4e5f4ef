// Addresses of code and places in sources, in words.

#ifndef TFTOOLKIT_EMULATION_REPORT_H_
#define TFTOOLKIT_EMULATION_REPORT_H_

#include <cstdint>
#include <string>

#include "tftoolkit/emulation/device.h"
#include "tftoolkit/emulation/kernel.h"

namespace tftoolkit::emulation {

// Where an instruction lies in the library.
uint32_t Offset(const Program& program, const void* pc);

// Whether the address is one of the library's own code or variables.
bool Contains(const Program& program, const void* address);

// "rms_norm.cu:53", or with the places that the function there is inlined into, innermost first.
std::string Source(const Program& program, uint32_t offset);

// The function at an instruction, without its parameters; `otherwise` if there is no telling.
std::string KernelName(const Program& program, uint32_t offset, const char* otherwise);

// "rms_norm.cu:53"
std::string Describe(Place place);

bool SameFile(Place one, Place other);

}  // namespace tftoolkit::emulation

#endif  // TFTOOLKIT_EMULATION_REPORT_H_
