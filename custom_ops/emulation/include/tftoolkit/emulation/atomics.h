// CUDA's atomic functions.

#ifndef TFTOOLKIT_EMULATION_ATOMICS_H_
#define TFTOOLKIT_EMULATION_ATOMICS_H_

#include "tftoolkit/emulation/device.h"

// A second type, so that a constant of another one converts as it does in CUDA.
#define TK_ATOMIC(Name, Expression)                                                             \
  template <typename T, typename U>                                                             \
  T Name(T* address, U operand) {                                                               \
    const T value = static_cast<T>(operand);                                                    \
    return ::tftoolkit::emulation::Atomically(address, [&](T old) -> T { return Expression; }); \
  }
TK_ATOMIC(atomicAdd, old + value)
TK_ATOMIC(atomicSub, old - value)
TK_ATOMIC(atomicMin, value < old ? value : old)
TK_ATOMIC(atomicMax, old < value ? value : old)
TK_ATOMIC(atomicAnd, old& value)
TK_ATOMIC(atomicOr, old | value)
TK_ATOMIC(atomicXor, old ^ value)
TK_ATOMIC(atomicExch, (static_cast<void>(old), value))
TK_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
TK_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef TK_ATOMIC

template <typename T>
T atomicCAS(T* address, T compare, T value) {
  return ::tftoolkit::emulation::Atomically(address, [&](T old) { return old == compare ? value : old; });
}

#endif  // TFTOOLKIT_EMULATION_ATOMICS_H_
