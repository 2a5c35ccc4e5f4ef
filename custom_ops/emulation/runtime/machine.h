// The emulated GPU of one call of a handler: its memory, and the block of threads that runs.
//
// Blocks run one after another. Within a block a thread runs until it waits for others; warps take turns, and within a
// warp the lanes, each in an order that the seed gives. Nothing else can come between two instructions: what depends on
// that is found by Memory, not by luck.

#ifndef TFTOOLKIT_EMULATION_MACHINE_H_
#define TFTOOLKIT_EMULATION_MACHINE_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "memory.h"
#include "settings.h"
#include "tftoolkit/emulation/device.h"
#include "tftoolkit/emulation/kernel.h"
#include "tftoolkit/emulation/runtime_api.h"

namespace tftoolkit::emulation {

enum class State { kNew, kReady, kAtBarrier, kInWarp, kGone };

// A cp.async on its way.
struct Copy {
  void* to;
  const void* from;
  size_t size;
  bool committed;
  int group;
};

struct Thread {
  State state = State::kNew;
  Context context;
  Stack stack;
  uint3 index;
  uint16_t number = 0;  // in the block
  Place place{};        // of what it waits at
  unsigned mask = 0;    // of a collective
  const char* waits_for = "";
  void* exchange = nullptr;  // what a warp collective reads and writes, on its own stack
  uint16_t clock = 1;
  uint16_t seen[kWarp] = {};
  bool fenced = false;
  std::vector<Copy> copies{};
  int groups = 0;  // of copies, committed so far
  int vote = 0;
};

// Lanes that have come to one collective.
struct Meeting {
  Place place;
  unsigned mask;
  unsigned arrived;
};

struct Warp {
  std::vector<Meeting> meetings;
};

class Machine {
 public:
  Machine(const Program& program, const Settings& settings);

  // The machine of the call that this operating system thread makes, or nullptr.
  static Machine* Current();

  void Run(const Launched& launch, void (*body)(void*), void* data);

  // The running one; nullptr in host code.
  Thread* thread() const { return thread_; }
  const Launched& launch() const { return *launch_; }
  uint3 block() const { return block_; }
  Memory& memory() { return memory_; }
  int threads() const { return static_cast<int>(threads_.size()); }
  Thread& thread_at(int number) { return threads_[number]; }

  void* Shared(const void* site, const char* name, size_t size, size_t alignment);
  void* DynamicShared(size_t alignment);

  void SyncThreads(const char* what, Place place);

  // Waits until all lanes of `mask` are here; the last one to come calls combine(machine, first lane's thread, mask).
  using Combine = void (*)(Machine* machine, Thread* lanes, unsigned mask);
  void Meet(const char* what, unsigned mask, Place place, void* exchange, Combine combine);

  // Marks that the lanes of `mask` wait for one another, so that what they did before is ordered before what follows.
  static void OrderLanes(Thread* lanes, unsigned mask);

  void Access(const void* address, size_t size, Kind kind, const void* pc);
  // Host code loads or stores: not the device's memory, which it could not reach on a GPU.
  void HostTouches(const void* address, const void* pc);
  void CheckAligned(const void* address, size_t alignment, const void* pc);
  // For cudaMemsetAsync and cudaMemcpyAsync; false, after Fail, where they may not.
  bool HostMayUse(const void* address, size_t size, bool stores);
  Actor Acting(const void* pc) const;

  // Ends the launch, from a thread of it; what other threads were about to do is dropped.
  [[noreturn]] void Find(const std::string& text);
  [[noreturn]] void FindAt(const std::string& what, Place place);
  [[noreturn]] void FindAtInstruction(const std::string& what, const void* pc);
  // The same from host code: an error that the launch gives.
  void Fail(cudaError_t error, std::string text);

  void EnterFunction(const void* pc);

  cudaError_t error = cudaSuccess;
  std::string finding;  // the first one
  size_t dynamic_limit = 48 << 10;
  const Program program;
  const Settings settings;

 private:
  struct SharedArray {
    const void* site;
    Region* region;
    uint32_t block;
  };

  SharedArray* FindShared(const void* site);
  void* PlaceShared(SharedArray* array, const void* site, const char* name, size_t size, size_t alignment);
  bool Valid(const Launched& launch);
  void RunBlock();
  void StartBlock();
  void RunWarps();
  bool OpenBarrier();
  void Resume(Thread* thread);
  void Wait(State state, const char* what, Place place);
  void ReportStuck();
  void Conclude(const Thread& thread, const std::string& text);
  std::string Who(const Thread& thread) const;
  static void ThreadMain();

  Memory memory_;
  std::mt19937_64 random_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> order_;
  std::vector<SharedArray> shared_;
  size_t static_bytes_ = 0;
  Context scheduler_;
  Thread* thread_ = nullptr;
  const Launched* launch_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* data_ = nullptr;
  uint3 block_{};
  uint32_t block_number_ = kHost;
  uint16_t epoch_ = 0;
  const void* kernel_pc_ = nullptr;
  bool stopped_ = false;

  friend class Call;
  static thread_local Machine* current_;
};

}  // namespace tftoolkit::emulation

#endif  // TFTOOLKIT_EMULATION_MACHINE_H_
