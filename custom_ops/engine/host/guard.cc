#include "guard.h"

#include <algorithm>
#include <cstring>

namespace tftoolkit {

std::atomic<GuardPattern> guard_pattern{GuardPattern{}};

GuardedBuffer::GuardedBuffer(size_t size, int guard)
    : memory_(new char[size + 2 * kGuard + kAlignment]), size_(size), guard_(guard) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_.get()) + kGuard;
  data_ = reinterpret_cast<char*>((begin + kAlignment - 1) / kAlignment * kAlignment);
  std::memset(data_ - kGuard, guard, kGuard);
  std::memset(data_ + size, guard, kGuard);
}

bool GuardedBuffer::GuardsIntact() const {
  const auto intact = [this](char c) { return c == static_cast<char>(guard_); };
  return std::all_of(data_ - kGuard, data_, intact) && std::all_of(data_ + size_, data_ + size_ + kGuard, intact);
}

}  // namespace tftoolkit

// Bytes to fill fresh CPU outputs and the memory around inputs with, and the input meant (-1: all of them). An output
// byte of -1 switches guards off.
extern "C" __attribute__((visibility("default"))) void tk_guard(int output, int around, int input) {
  tftoolkit::guard_pattern.store({static_cast<int16_t>(output), static_cast<int16_t>(around), input});
}
