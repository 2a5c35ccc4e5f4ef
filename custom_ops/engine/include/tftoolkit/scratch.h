// Scratch memory of a kernel's threads.

#ifndef TFTOOLKIT_SCRATCH_H_
#define TFTOOLKIT_SCRATCH_H_

#include <cstdint>
#include <utility>
#include <vector>

namespace tftoolkit {

// Memory of a thread, kept from call to call: fresh pages cost more than the arithmetic on them.
class Scratch {
 public:
  float* Get(int64_t floats) {
    if (static_cast<int64_t>(memory_.size()) < floats + 16) memory_.resize(floats + 16);
    float* data = memory_.data();
    return data + (-reinterpret_cast<uintptr_t>(data) % 64) / sizeof(float);
  }

 private:
  std::vector<float> memory_;
};

// Parts of one piece of scratch memory, each at a multiple of 64 bytes.
class Parts {
 public:
  int64_t Add(int64_t floats) { return std::exchange(size_, size_ + (floats + 15) / 16 * 16); }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

}  // namespace tftoolkit

#endif  // TFTOOLKIT_SCRATCH_H_
