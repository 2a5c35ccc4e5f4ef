// The device's memory: what may be touched, what was written, and which accesses are ordered by nothing.
//
// Every load and store of a kernel comes to Memory::Access. A cell of shadow memory remembers, for each few bytes, the
// last store and two loads; an access conflicts with a remembered one of another thread if one of them stores, not
// both are atomic, and no barrier lies between them (Moment::Before).

#ifndef TFTOOLKIT_EMULATION_MEMORY_H_
#define TFTOOLKIT_EMULATION_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tftoolkit::emulation {

constexpr int kWarp = 32;

enum class Kind { kLoad, kStore, kAtomicLoad, kAtomicStore, kCopyStore };

constexpr uint32_t kHost = 1;  // the number of a block that stands for the host

// Who touched something, and when.
struct Moment {
  uint32_t block = 0;  // counted over all launches of the call from kHost + 1; 0: nobody
  uint32_t pc = 0;     // from the beginning of the library
  uint16_t thread = 0;
  uint16_t epoch = 0;  // barriers of the block that the thread has passed
  uint16_t clock = 0;  // barriers of the warp
  bool atomic = false;
  bool arriving = false;  // by cp.async, and not waited for yet
};

// The thread at hand.
struct Actor {
  Moment now;
  const uint16_t* seen;  // [kWarp]: the clocks of the warp's lanes that come before now
};

struct Cell {
  Moment store;
  Moment loads[2];
};

enum class Space { kInput, kOutput, kScratch, kShared };

// A piece of device memory. What lies around it belongs to nobody.
struct Region {
  Region(Space space, std::string name, char* begin, size_t size, void* mapping, size_t mapped)
      : space(space), name(std::move(name)), begin(begin), size(size), mapping(mapping), mapped(mapped) {}
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region();

  Space space;
  std::string name;
  char* begin;
  size_t size;
  void* mapping;
  size_t mapped;
  bool written = false;     // all of it, by the host
  unsigned cell_shift = 4;  // a cell stands for 2^cell_shift bytes, fewer when a smaller access comes
  std::vector<Cell> cells;

  bool Contains(const void* address, size_t bytes) const {
    const char* first = static_cast<const char*>(address);
    return first >= begin && bytes <= size && first <= begin + (size - bytes);
  }
};

// What is wrong with an access. The other one's place is `other`, if there is one.
struct Conflict {
  std::string what;
  Moment other;
};

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // New memory, filled with 0xFF (not a number in every float format). nullptr if there is none.
  char* Allocate(Space space, std::string name, size_t size, size_t alignment);

  // The region that holds the address, or nullptr.
  Region* Find(const void* address);

  // Checks and remembers an access; false, with the reason in `conflict`, if it must not be.
  bool Access(const void* address, size_t size, Kind kind, const Actor& actor, Conflict* conflict);

  // The bytes have arrived: they count as a store of now.
  void Arrive(const void* address, size_t size, const Actor& actor);

  void Drop(Region* region);

  Region* Newest() { return regions_.back().get(); }

  // The first byte of a region that nobody has written; its size if there is none.
  static size_t FirstUnwritten(const Region& region);

  // Between launches the host fills or copies memory. Where it reads or writes what is not of the device: false.
  bool HostAccess(const void* address, size_t size, bool stores, std::string* wrong);

  // Forgets what a region held, as a block's shared memory does.
  void Renew(Region* region);

  // What comes after this is ordered after all that came before.
  void BeginLaunch(uint32_t first_block);

  // By atomics with fences, a block lets others see what it did.
  void Release(const void* atomic, uint32_t block);
  void Acquire(const void* atomic, uint32_t block);

  // Where an address lies that is in no region, in words.
  std::string Describe(const void* address) const;

 private:
  bool Ordered(const Moment& before, const Actor& actor) const;
  void Refine(Region* region, unsigned shift);
  const char* Load(Cell* cell, const Actor& actor, Moment* other) const;
  const char* Store(Cell* cell, const Actor& actor, Moment* other) const;

  std::vector<std::unique_ptr<Region>> regions_;
  Region* last_ = nullptr;
  uint32_t first_block_ = kHost + 1;
  std::unordered_map<const void*, std::set<uint32_t>> released_;
  std::set<uint32_t> acquired_;  // by the block at hand
  uint32_t acquiring_ = 0;
};

}  // namespace tftoolkit::emulation

#endif  // TFTOOLKIT_EMULATION_MEMORY_H_
