// Stands in for CUDA's cuda_runtime.h where a .cu file is compiled for the CPU: the part of CUDA that kernels and
// their launches use. What is missing here is a compile error that names it.

#ifndef TFTOOLKIT_EMULATION_CUDA_RUNTIME_H_
#define TFTOOLKIT_EMULATION_CUDA_RUNTIME_H_

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tftoolkit/emulation/atomics.h"
#include "tftoolkit/emulation/device.h"
#include "tftoolkit/emulation/device_math.h"
#include "tftoolkit/emulation/runtime_api.h"

#define __device__
#define __host__
#define __constant__
// A function of its own in the library, after which findings are named.
#define __global__ __attribute__((noinline, noclone))
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

#define threadIdx (::tftoolkit::emulation::ThreadIndex())
#define blockIdx (::tftoolkit::emulation::BlockIndex())
#define blockDim (::tftoolkit::emulation::BlockSize())
#define gridDim (::tftoolkit::emulation::GridSize())
constexpr int warpSize = 32;

inline void __syncthreads(TK_CALLED_AT) { ::tftoolkit::emulation::SyncThreads({file, line}); }

inline int __syncthreads_count(int predicate, TK_CALLED_AT) {
  return ::tftoolkit::emulation::SyncThreadsVote(::tftoolkit::emulation::Vote::kCount, predicate, {file, line});
}

inline int __syncthreads_and(int predicate, TK_CALLED_AT) {
  return ::tftoolkit::emulation::SyncThreadsVote(::tftoolkit::emulation::Vote::kAnd, predicate, {file, line});
}

inline int __syncthreads_or(int predicate, TK_CALLED_AT) {
  return ::tftoolkit::emulation::SyncThreadsVote(::tftoolkit::emulation::Vote::kOr, predicate, {file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, TK_CALLED_AT) {
  ::tftoolkit::emulation::SyncWarp(mask, {file, line});
}

inline void __threadfence() { ::tftoolkit::emulation::Fence(); }
inline void __threadfence_block() { ::tftoolkit::emulation::Fence(); }
inline void __threadfence_system() { ::tftoolkit::emulation::Fence(); }
[[noreturn]] inline void __trap(TK_CALLED_AT) { ::tftoolkit::emulation::Trap("__trap()", {file, line}); }

#define TK_SHUFFLE(Name, Kind, Parameter)                                                           \
  template <typename T>                                                                             \
  T Name(unsigned mask, T value, Parameter argument, int width = warpSize, TK_CALLED_AT) {          \
    return ::tftoolkit::emulation::ShuffleValue(::tftoolkit::emulation::Shuffle::Kind, mask, value, \
                                                static_cast<int>(argument), width, {file, line});   \
  }
TK_SHUFFLE(__shfl_sync, kIndex, int)
TK_SHUFFLE(__shfl_up_sync, kUp, unsigned)
TK_SHUFFLE(__shfl_down_sync, kDown, unsigned)
TK_SHUFFLE(__shfl_xor_sync, kXor, int)
#undef TK_SHUFFLE

inline unsigned __activemask() { return ::tftoolkit::emulation::ActiveMask(); }

inline unsigned __ballot_sync(unsigned mask, int predicate, TK_CALLED_AT) {
  return ::tftoolkit::emulation::Ballot(mask, predicate, {file, line});
}

inline int __any_sync(unsigned mask, int predicate, TK_CALLED_AT) {
  return ::tftoolkit::emulation::Ballot(mask, predicate, {file, line}) != 0;
}

inline int __all_sync(unsigned mask, int predicate, TK_CALLED_AT) {
  return ::tftoolkit::emulation::Ballot(mask, predicate, {file, line}) == mask;
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, TK_CALLED_AT) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return ::tftoolkit::emulation::MatchAny(mask, bits, {file, line});
}

#endif  // TFTOOLKIT_EMULATION_CUDA_RUNTIME_H_
