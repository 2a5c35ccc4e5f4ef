// Included before everything else of a .cc file beside an emulated .cu file: its schemas stay, its kernels don't.

#ifndef TFTOOLKIT_EMULATION_SCHEMA_ONLY_H_
#define TFTOOLKIT_EMULATION_SCHEMA_ONLY_H_

#include "tftoolkit/op.h"

#undef TK_KERNEL
#define TK_KERNEL(op, platform, handler) static_assert(true)

#endif  // TFTOOLKIT_EMULATION_SCHEMA_ONLY_H_
