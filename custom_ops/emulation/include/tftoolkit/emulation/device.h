// What emulated device code calls: indices, shared memory, barriers, warp collectives, atomics, launches.
//
// cuda_runtime.h beside this folder gives these CUDA's names. The functions are compiled without instrumentation
// (runtime/*.cc), so that the tracer sees the kernel's own loads and stores only.

#ifndef TFTOOLKIT_EMULATION_DEVICE_H_
#define TFTOOLKIT_EMULATION_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "tftoolkit/emulation/vector_types.h"

#define TK_UNTRACED __attribute__((no_sanitize_thread))
// As last parameters: where the caller stands in its source. A barrier is told from another by this.
#define TK_CALLED_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

typedef struct CUstream_st* cudaStream_t;

namespace tftoolkit::emulation {

struct Place {
  const char* file;
  int line;
};

uint3 ThreadIndex();
uint3 BlockIndex();
dim3 BlockSize();
dim3 GridSize();

// The memory of one `__shared__` declaration (`site` is an address of its own) in the block at hand.
void* SharedMemory(const void* site, const char* name, size_t size, size_t alignment);
// That of `extern __shared__`.
void* DynamicSharedMemory(size_t alignment);

// Barriers. The reduction says how many threads' predicates hold.
enum class Vote { kCount, kAnd, kOr };
void SyncThreads(Place place);
int SyncThreadsVote(Vote vote, bool predicate, Place place);
void SyncWarp(unsigned mask, Place place);
void Fence();

// Collectives of the lanes in `mask`.
enum class Shuffle { kIndex, kUp, kDown, kXor };
uint64_t ShuffleBits(Shuffle kind, unsigned mask, uint64_t bits, int argument, int width, Place place);
unsigned Ballot(unsigned mask, bool predicate, Place place);
unsigned MatchAny(unsigned mask, uint64_t bits, Place place);
unsigned ActiveMask();
int LaneIndex();

template <typename T>
T ShuffleValue(Shuffle kind, unsigned mask, T value, int argument, int width, Place place) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "shuffles move up to eight bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = ShuffleBits(kind, mask, bits, argument, width, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Half an atomic each; no other thread runs in between.
void AtomicLoad(const void* address, void* value, size_t size);
void AtomicStore(void* address, const void* value, size_t size);

template <typename T, typename Update>
T Atomically(T* address, Update update) {
  T old;
  AtomicLoad(address, &old, sizeof old);
  const T changed = update(old);
  AtomicStore(address, &changed, sizeof changed);
  return old;
}

// Ends the kernel with a finding.
[[noreturn]] void Trap(const char* what, Place place);

// The smaller of `blocks` and of what the settings allow a launch; see tftoolkit/grid.h.
int64_t LimitBlocks(int64_t blocks);

// Launches. Arguments are copied, as CUDA does it.
struct Launched {
  dim3 grid, block;
  size_t shared_bytes;
  const char* kernel;  // as the launch spells it
  Place place;
};

void Run(const Launched& launch, void (*body)(void*), void* data);

// As a function, since the one that a lambda converts to cannot be left untraced.
template <typename Function>
TK_UNTRACED void CallFunction(void* function) {
  (*static_cast<Function*>(function))();
}

template <typename Body>
struct Launcher {
  Launched launch;
  Body body;

  template <typename... Arguments>
  TK_UNTRACED void operator()(Arguments... arguments) const {
    auto call = [&]() TK_UNTRACED { body(arguments...); };
    Run(launch, &CallFunction<decltype(call)>, &call);
  }
};

// K<<<grid, block, bytes, stream>>>(arguments) is rewritten to Launch("K", …, calls K, grid, block, bytes,
// stream)(arguments).
template <typename Body>
TK_UNTRACED Launcher<Body> Launch(const char* kernel, const char* file, int line, Body body, dim3 grid, dim3 block,
                                  size_t shared_bytes = 0, cudaStream_t = nullptr) {
  return {{grid, block, shared_bytes, kernel, {file, line}}, std::move(body)};
}

}  // namespace tftoolkit::emulation

#endif  // TFTOOLKIT_EMULATION_DEVICE_H_
