#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace tftoolkit::emulation {
namespace {

constexpr size_t kStackSize = 256 << 10;  // of which a kernel touches the top few pages

size_t PageSize() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

}  // namespace

Stack Stacks::Take() {
  if (!free_.empty()) {
    const Stack stack = free_.back();
    free_.pop_back();
    return stack;
  }
  const size_t size = kStackSize + PageSize();
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, PageSize(), PROT_NONE);
  char* low = static_cast<char*>(memory) + PageSize();
  return {low, low + kStackSize};
}

Stacks::~Stacks() {
  for (const Stack& stack : free_) munmap(stack.low - PageSize(), kStackSize + PageSize());
}

#ifndef TK_PORTABLE_FIBERS

// The registers that a called function must preserve go onto the stack (System V ABI); the rest is the compiler's.
asm(R"(
.text
.hidden tk_emulation_switch
.globl tk_emulation_switch
.type tk_emulation_switch, @function
tk_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tk_emulation_switch, .-tk_emulation_switch
)");
extern "C" void tk_emulation_switch(Context* from, Context* to);

void Prepare(Context* context, const Stack& stack, void (*entry)()) {
  constexpr int kRegisters = 6;
  void** top = reinterpret_cast<void**>(stack.high);
  *--top = nullptr;  // the entry's return address; also what makes its stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kRegisters; ++i) *--top = nullptr;
  context->stack_pointer = top;
}

void Switch(Context* from, Context* to) { tk_emulation_switch(from, to); }

#else

// About ten times as slow: it asks the kernel for the signal mask.
void Prepare(Context* context, const Stack& stack, void (*entry)()) {
  getcontext(&context->state);
  context->state.uc_stack.ss_sp = stack.low;
  context->state.uc_stack.ss_size = static_cast<size_t>(stack.high - stack.low);
  context->state.uc_link = nullptr;
  makecontext(&context->state, entry, 0);
}

void Switch(Context* from, Context* to) { swapcontext(&from->state, &to->state); }

#endif

}  // namespace tftoolkit::emulation
