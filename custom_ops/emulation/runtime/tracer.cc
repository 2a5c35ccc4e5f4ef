// The functions that `g++ -fsanitize=thread` calls for every load and store of the kernel. The compiler's own library
// of them is not linked: these ask the machine whether the access is right.

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "machine.h"

using tftoolkit::emulation::Kind;
using tftoolkit::emulation::Machine;

namespace {

void Access(const void* address, size_t size, Kind kind, bool aligned, const void* pc) {
  Machine* machine = Machine::Current();
  if (machine == nullptr) return;
  if (machine->thread() == nullptr) return machine->HostTouches(address, pc);  // host code of the .cu file
  if (aligned) machine->CheckAligned(address, size, pc);
  machine->Access(address, size, kind, pc);
}

}  // namespace

#define TK_PC __builtin_return_address(0)
#define TK_TRACE(size)                                                                                  \
  void __tsan_read##size(void* address) { Access(address, size, Kind::kLoad, true, TK_PC); }            \
  void __tsan_write##size(void* address) { Access(address, size, Kind::kStore, true, TK_PC); }          \
  void __tsan_unaligned_read##size(void* address) { Access(address, size, Kind::kLoad, false, TK_PC); } \
  void __tsan_unaligned_write##size(void* address) { Access(address, size, Kind::kStore, false, TK_PC); }

extern "C" {

TK_TRACE(1)
TK_TRACE(2)
TK_TRACE(4)
TK_TRACE(8)
TK_TRACE(16)

void __tsan_read_range(void* address, size_t size) { Access(address, size, Kind::kLoad, false, TK_PC); }
void __tsan_write_range(void* address, size_t size) { Access(address, size, Kind::kStore, false, TK_PC); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_init() {}
void __tsan_func_exit() {}

void __tsan_func_entry(void*) {
  Machine* machine = Machine::Current();
  if (machine != nullptr && machine->thread() != nullptr) machine->EnterFunction(TK_PC);
}

// Host code: guards of local statics, shared pointers. Kernels have CUDA's functions.
#define TK_ATOMICS(bits, T)                                                                                         \
  T __tsan_atomic##bits##_load(const volatile T* a, int) { return __atomic_load_n(a, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(volatile T* a, T v, int) { __atomic_store_n(a, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_exchange(volatile T* a, T v, int) { return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(volatile T* a, T v, int) { return __atomic_fetch_add(a, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(volatile T* a, T v, int) { return __atomic_fetch_sub(a, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_and(volatile T* a, T v, int) { return __atomic_fetch_and(a, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_or(volatile T* a, T v, int) { return __atomic_fetch_or(a, v, __ATOMIC_SEQ_CST); }   \
  T __tsan_atomic##bits##_fetch_xor(volatile T* a, T v, int) { return __atomic_fetch_xor(a, v, __ATOMIC_SEQ_CST); } \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* a, T* c, T v, int, int) {                           \
    return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                         \
  }
TK_ATOMICS(8, uint8_t)
TK_ATOMICS(16, uint16_t)
TK_ATOMICS(32, uint32_t)
TK_ATOMICS(64, uint64_t)

// What the C library does for kernels. The linker sends a library's calls of memcpy here (--wrap=memcpy).
void* __wrap_memcpy(void* to, const void* from, size_t size) {
  if (size != 0) Access(from, size, Kind::kLoad, false, TK_PC), Access(to, size, Kind::kStore, false, TK_PC);
  return memcpy(to, from, size);
}

void* __wrap_memmove(void* to, const void* from, size_t size) {
  if (size != 0) Access(from, size, Kind::kLoad, false, TK_PC), Access(to, size, Kind::kStore, false, TK_PC);
  return memmove(to, from, size);
}

void* __wrap_memset(void* to, int byte, size_t size) {
  if (size != 0) Access(to, size, Kind::kStore, false, TK_PC);
  return memset(to, byte, size);
}

void __wrap___assert_fail(const char* assertion, const char* file, unsigned line, const char* function) {
  Machine* machine = Machine::Current();
  const std::string what = std::string("assert(") + assertion + ") fails";
  if (machine != nullptr && machine->thread() != nullptr) machine->FindAt(what, {file, static_cast<int>(line)});
  __assert_fail(assertion, file, line, function);
}

void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // extern "C"
