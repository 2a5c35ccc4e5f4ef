#include "kept_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

namespace tftoolkit {
namespace {

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kPage = 4096;

void* Map(size_t bytes) {
  void* const mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(mapped);
  const size_t before = -reinterpret_cast<uintptr_t>(begin) % kHugePage;
  if (before) munmap(begin, before);
  munmap(begin + before + bytes, kHugePage - before);
#ifdef MADV_HUGEPAGE
  madvise(begin + before, bytes, MADV_HUGEPAGE);  // a page table without them says no, and that is as well
#endif
  return begin + before;
}

// Freed blocks wait for the next request of about their size. They and the blocks in use never hold more than was once
// in use, so keeping them does not raise the peak; and the system may take their pages when it runs short.
class KeptMemoryAllocator : public tensorflow::Allocator {
 public:
  std::string Name() override { return "tftoolkit_kept"; }

  void* AllocateRaw(size_t /*alignment*/, size_t bytes) override {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    std::lock_guard<std::mutex> lock(mutex_);
    auto block = kept_.lower_bound(bytes);
    if (block == kept_.end() || block->first - bytes > bytes / 4) {
      Release(bytes);
      void* const data = Map(bytes);
      if (data) Use(data, bytes);
      return data;
    }
    const auto [size, data] = *block;
    kept_.erase(block);
    kept_bytes_ -= size;
    Use(data, size);
    return data;
  }

  void DeallocateRaw(void* data) override {
    if (data == nullptr) return;
    std::lock_guard<std::mutex> lock(mutex_);
    const auto block = used_.find(data);
    const size_t size = block->second;
    used_.erase(block);
    used_bytes_ -= size;
    kept_.emplace(size, data);
    kept_bytes_ += size;
#ifdef MADV_FREE
    madvise(data, size, MADV_FREE);
#endif
  }

 private:
  void Use(void* data, size_t size) {
    used_.emplace(data, size);
    used_bytes_ += size;
    peak_ = std::max(peak_, used_bytes_);
  }

  // Unmaps blocks, the largest first, until `bytes` more fit under the peak.
  void Release(size_t bytes) {
    while (!kept_.empty() && kept_bytes_ + used_bytes_ + bytes > peak_) {
      const auto last = std::prev(kept_.end());
      munmap(last->second, last->first);
      kept_bytes_ -= last->first;
      kept_.erase(last);
    }
  }

  std::mutex mutex_;
  std::unordered_map<void*, size_t> used_;
  std::multimap<size_t, void*> kept_;  // by size
  size_t used_bytes_ = 0, kept_bytes_ = 0, peak_ = 0;
};

}  // namespace

tensorflow::Allocator* KeptMemory() {
  static auto* const allocator = new KeptMemoryAllocator;  // outlives every tensor
  return allocator;
}

}  // namespace tftoolkit
