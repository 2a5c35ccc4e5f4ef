// Memory of large outputs, kept when it is freed: touching a fresh page costs more than a kernel's arithmetic on it.

#ifndef TFTOOLKIT_HOST_KEPT_MEMORY_H_
#define TFTOOLKIT_HOST_KEPT_MEMORY_H_

#include <cstddef>

#include "tensorflow/core/framework/allocator.h"

namespace tftoolkit {

// Outputs of fewer bytes are TensorFlow's to allocate: malloc keeps those by itself.
constexpr size_t kKeptBytes = 1 << 20;

// The one allocator of the process; tensors that live on may free to it at any time.
tensorflow::Allocator* KeptMemory();

}  // namespace tftoolkit

#endif  // TFTOOLKIT_HOST_KEPT_MEMORY_H_
