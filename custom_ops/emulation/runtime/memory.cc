#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace tftoolkit::emulation {
namespace {

constexpr size_t kGap = 1 << 20;  // of addresses around each region, which cost no memory
constexpr unsigned kSmallestShift = 0;
constexpr char kRace[] = "race";  // with the place of the other access

bool Stores(Kind kind) { return kind == Kind::kStore || kind == Kind::kAtomicStore || kind == Kind::kCopyStore; }

std::string Name(const Region& region) { return (region.space == Space::kShared ? "shared array " : "") + region.name; }

std::string Bytes(size_t count) { return std::to_string(count) + (count == 1 ? " byte" : " bytes"); }

}  // namespace

Region::~Region() { munmap(mapping, mapped); }

char* Memory::Allocate(Space space, std::string name, size_t size, size_t alignment) {
  constexpr size_t kPage = 4096;
  const size_t room = (size + kPage - 1) / kPage * kPage + kPage, mapped = room + 2 * kGap;
  void* mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  char* usable = static_cast<char*>(mapping) + kGap;
  // Aligned as promised and no better, so that a kernel that hopes for more is found out.
  auto region = std::make_unique<Region>(space, std::move(name), usable + alignment % kPage, size, mapping, mapped);
  if (mprotect(usable, room, PROT_READ | PROT_WRITE) != 0) return nullptr;
  std::memset(region->begin, 0xFF, size);
  regions_.push_back(std::move(region));
  return regions_.back()->begin;
}

void Memory::Drop(Region* region) {
  last_ = nullptr;
  const auto is_it = [&](const std::unique_ptr<Region>& one) { return one.get() == region; };
  regions_.erase(std::find_if(regions_.begin(), regions_.end(), is_it));
}

Region* Memory::Find(const void* address) {
  if (last_ != nullptr && last_->Contains(address, 1)) return last_;
  for (const auto& region : regions_) {
    if (region->Contains(address, 1)) return last_ = region.get();
  }
  return nullptr;
}

std::string Memory::Describe(const void* address) const {
  const char* place = static_cast<const char*>(address);
  for (const auto& region : regions_) {
    const char* end = region->begin + region->size;
    const std::string held = " (it holds " + Bytes(region->size) + ")";
    if (place >= end && place < end + kGap) {
      return Name(*region) + " + " + Bytes(place - region->begin) + ", behind its end" + held;
    }
    if (place < region->begin && place >= region->begin - kGap) {
      return Name(*region) + " - " + Bytes(region->begin - place) + ", before its beginning" + held;
    }
  }
  return place == nullptr ? "a null pointer" : "an address that is not of the device's memory";
}

bool Memory::Ordered(const Moment& before, const Actor& actor) const {
  const Moment& now = actor.now;
  if (before.block < first_block_) return true;  // nobody, or an earlier launch
  if (before.block != now.block) return acquiring_ == now.block && acquired_.count(before.block) != 0;
  if (before.thread == now.thread || before.epoch != now.epoch) return true;
  return before.thread / kWarp == now.thread / kWarp && actor.seen[before.thread % kWarp] >= before.clock;
}

// Makes cells of 2^shift bytes, which inherit what the larger ones knew.
void Memory::Refine(Region* region, unsigned shift) {
  const size_t count = (region->size + (size_t{1} << shift) - 1) >> shift;
  std::vector<Cell> cells(count);
  if (!region->cells.empty()) {
    const unsigned times = region->cell_shift - shift;
    for (size_t i = 0; i < count; ++i) cells[i] = region->cells[i >> times];
  } else if (region->written) {
    for (Cell& cell : cells) cell.store.block = kHost;
  }
  region->cells.swap(cells);
  region->cell_shift = shift;
}

const char* Memory::Load(Cell* cell, const Actor& actor, Moment* other) const {
  *other = cell->store;
  if (cell->store.arriving) return "which a copy that was not waited for writes";
  if (cell->store.block == 0) return "which nobody has written";
  const bool both_atomic = cell->store.atomic && actor.now.atomic;
  if (!both_atomic && !Ordered(cell->store, actor)) return kRace;
  // The two loads of most use later: of this thread, and one that no barrier separates from it.
  Moment* place = &cell->loads[1];
  for (Moment& load : cell->loads) {
    const bool replaced = load.block == 0 || (load.block == actor.now.block && load.thread == actor.now.thread);
    if (replaced || Ordered(load, actor)) {
      place = &load;
      break;
    }
  }
  *place = actor.now;
  return nullptr;
}

const char* Memory::Store(Cell* cell, const Actor& actor, Moment* other) const {
  *other = cell->store;
  if (cell->store.arriving) return "which a copy that was not waited for writes";
  if (!(cell->store.atomic && actor.now.atomic) && !Ordered(cell->store, actor)) return kRace;
  for (Moment& load : cell->loads) {
    *other = load;
    if (!(load.atomic && actor.now.atomic) && !Ordered(load, actor)) return kRace;
    load = Moment{};
  }
  cell->store = actor.now;
  return nullptr;
}

bool Memory::Access(const void* address, size_t size, Kind kind, const Actor& actor, Conflict* conflict) {
  const bool stores = Stores(kind);
  const char* verb = stores ? "store to " : "load from ";
  Region* region = Find(address);
  if (region == nullptr || !region->Contains(address, size)) {
    conflict->what = std::string(verb) + (region ? Describe(region->begin + region->size) : Describe(address));
    return false;
  }
  const size_t offset = static_cast<const char*>(address) - region->begin;
  if (region->space == Space::kInput) {
    if (!stores) return true;
    conflict->what = "store to " + Name(*region) + " + " + Bytes(offset) + ", an input, which kernels must not change";
    return false;
  }
  unsigned shift = kSmallestShift;
  while (shift < 4 && (offset | size) % (size_t{2} << shift) == 0) ++shift;
  if (region->cells.empty() || shift < region->cell_shift) Refine(region, shift);
  Actor marked = actor;
  marked.now.atomic = kind == Kind::kAtomicLoad || kind == Kind::kAtomicStore;
  marked.now.arriving = kind == Kind::kCopyStore;
  const size_t last = (offset + size - 1) >> region->cell_shift;
  for (size_t i = offset >> region->cell_shift; i <= last; ++i) {
    Cell* cell = &region->cells[i];
    // Half an atomic is remembered by its store.
    const char* wrong = stores ? Store(cell, marked, &conflict->other) : Load(cell, marked, &conflict->other);
    if (wrong == nullptr) continue;
    const std::string place = Name(*region) + " + " + Bytes(std::max(offset, i << region->cell_shift));
    conflict->what = wrong == kRace ? std::string(kRace) + ": " + verb + place : verb + place + ", " + wrong;
    return false;
  }
  return true;
}

void Memory::Arrive(const void* address, size_t size, const Actor& actor) {
  Region* region = Find(address);
  if (region == nullptr || region->cells.empty()) return;
  const size_t offset = static_cast<const char*>(address) - region->begin;
  for (size_t i = offset >> region->cell_shift; i <= (offset + size - 1) >> region->cell_shift; ++i) {
    const uint32_t pc = region->cells[i].store.pc;
    region->cells[i].store = actor.now;
    region->cells[i].store.pc = pc;
  }
}

size_t Memory::FirstUnwritten(const Region& region) {
  if (region.written) return region.size;
  for (size_t i = 0; i < region.cells.size(); ++i) {
    if (region.cells[i].store.block == 0) return i << region.cell_shift;
  }
  return region.cells.empty() ? 0 : region.size;
}

bool Memory::HostAccess(const void* address, size_t size, bool stores, std::string* wrong) {
  Region* region = Find(address);
  if (region == nullptr || !region->Contains(address, size)) {
    *wrong = region ? Describe(region->begin + region->size) : Describe(address);
    return false;
  }
  if (!stores) return true;
  if (region->space == Space::kInput) {
    *wrong = Name(*region) + ", an input, which must not change";
    return false;
  }
  const size_t offset = static_cast<const char*>(address) - region->begin;
  Refine(region, kSmallestShift);
  Cell written;
  written.store.block = kHost;
  std::fill_n(region->cells.begin() + static_cast<ptrdiff_t>(offset), size, written);
  return true;
}

void Memory::Renew(Region* region) {
  std::memset(region->begin, 0xFF, region->size);
  std::fill(region->cells.begin(), region->cells.end(), Cell{});
}

void Memory::BeginLaunch(uint32_t first_block) {
  first_block_ = first_block;
  released_.clear();
}

void Memory::Release(const void* atomic, uint32_t block) {
  std::set<uint32_t>& blocks = released_[atomic];
  blocks.insert(block);
  if (acquiring_ == block) blocks.insert(acquired_.begin(), acquired_.end());
}

void Memory::Acquire(const void* atomic, uint32_t block) {
  const auto found = released_.find(atomic);
  if (found == released_.end()) return;
  if (acquiring_ != block) acquired_.clear();
  acquiring_ = block;
  acquired_.insert(found->second.begin(), found->second.end());
}

}  // namespace tftoolkit::emulation
