// For opcheck: handlers run on copies of their buffers with guarded memory around them, and find a known byte pattern
// in their outputs. A kernel that leaves part of an output unwritten or reads past the end of an input gives another
// result for another pattern; one that writes past the end damages a guard.

#ifndef TFTOOLKIT_HOST_GUARD_H_
#define TFTOOLKIT_HOST_GUARD_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace tftoolkit {

// The bytes in fresh outputs and around inputs. `input` limits the latter to one input; -1 means all of them.
// Aligned to a size that machines load and store at once: std::atomic of another needs libatomic.
struct alignas(8) GuardPattern {
  int16_t output = -1;  // -1: no guards, handlers run on TensorFlow's own buffers
  int16_t around = 0;
  int32_t input = -1;

  int Around(int i) const { return input < 0 || input == i ? around : kOther; }

 private:
  static constexpr int kOther = 0xCD;
};

extern std::atomic<GuardPattern> guard_pattern;  // set for the whole process by tk_guard()
static_assert(std::atomic<GuardPattern>::is_always_lock_free, "read in every call of every op");

// Memory of a given size, aligned as TensorFlow's is, between two guards.
class GuardedBuffer {
 public:
  GuardedBuffer(size_t size, int guard);

  char* data() const { return data_; }
  bool GuardsIntact() const;

 private:
  static constexpr size_t kGuard = 4096;
  static constexpr size_t kAlignment = 64;

  std::unique_ptr<char[]> memory_;
  char* data_;
  size_t size_;
  int guard_;
};

}  // namespace tftoolkit

#endif  // TFTOOLKIT_HOST_GUARD_H_
