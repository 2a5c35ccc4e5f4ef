// Fibers: a stack each, and a switch between them that costs some 50 ns. One CUDA thread runs on one fiber.

#ifndef TFTOOLKIT_EMULATION_FIBER_H_
#define TFTOOLKIT_EMULATION_FIBER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#if !defined(__x86_64__)
#define TK_PORTABLE_FIBERS
#endif
#ifdef TK_PORTABLE_FIBERS
#include <ucontext.h>
#endif

namespace tftoolkit::emulation {

// A stack with a page below it that nobody may touch.
struct Stack {
  char* low = nullptr;
  char* high = nullptr;

  bool Contains(const void* address) const { return address >= low && address < high; }
};

// The stacks of one operating system thread, kept for its later launches.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks();

  Stack Take();
  void Return(Stack stack) { free_.push_back(stack); }

 private:
  std::vector<Stack> free_;
};

// Where a fiber, or the thread that runs fibers, was left.
struct Context {
#ifdef TK_PORTABLE_FIBERS
  ucontext_t state;
#else
  void* stack_pointer = nullptr;
#endif
};

// Makes `context` begin with `entry` on `stack` when it is switched to. `entry` must not return.
void Prepare(Context* context, const Stack& stack, void (*entry)());

// Goes on at `to`; returns when somebody switches back to `from`.
void Switch(Context* from, Context* to);

}  // namespace tftoolkit::emulation

#endif  // TFTOOLKIT_EMULATION_FIBER_H_
