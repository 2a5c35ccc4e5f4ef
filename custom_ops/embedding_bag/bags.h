// What the kernels of embedding bags share: the borders of bags, the ids in them, and how work is cut.

#ifndef TFTOOLKIT_EMBEDDING_BAG_BAGS_H_
#define TFTOOLKIT_EMBEDDING_BAG_BAGS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"

namespace tftoolkit {
namespace embedding_bag {

// Bag b has the ids at places [borders[b], borders[b + 1]).
struct Bags {
  std::vector<int64_t> borders;
  int64_t count() const { return static_cast<int64_t>(borders.size()) - 1; }
  int64_t ids() const { return borders.back(); }
};

inline ffi::Error ReadBags(const char* op, const ffi::AnyBuffer& row_splits, int64_t ids, Bags& bags) {
  ffi::Error error = WithIntegerType(op, row_splits.element_type(), [&](auto type) {
    const auto* from = Data<decltype(type)>(row_splits);
    bags.borders.assign(from, from + row_splits.element_count());
    return ffi::Error::Success();
  });
  if (error.failure()) return error;
  const auto& borders = bags.borders;
  for (size_t i = 1; i < borders.size(); ++i) {
    if (borders[i] < borders[i - 1]) {
      return ffi::Error::InvalidArgument("row_splits falls from " + std::to_string(borders[i - 1]) + " to " +
                                         std::to_string(borders[i]) + " (element " + std::to_string(i) +
                                         "), but must not");
    }
  }
  if (borders.front() != 0 || borders.back() != ids) {
    return ffi::Error::InvalidArgument("row_splits must begin with 0 and end with the number of values, " +
                                       std::to_string(ids) + ", got " + std::to_string(borders.front()) + " and " +
                                       std::to_string(borders.back()));
  }
  return ffi::Error::Success();
}

// Remembers the first id that is no row of the table, whichever thread finds it.
class FirstBad {
 public:
  void Note(int64_t place) {
    int64_t seen = first_.load(std::memory_order_relaxed);
    while (place < seen && !first_.compare_exchange_weak(seen, place, std::memory_order_relaxed)) {
    }
  }

  template <typename Id>
  ffi::Error Error(const Id* ids, int64_t rows, bool padded) const {
    const int64_t place = first_.load();
    if (place == kNone) return ffi::Error::Success();
    return ffi::Error::InvalidArgument("values holds " + std::to_string(ids[place]) + " (element " +
                                       std::to_string(place) + "), but must hold rows of table, from 0 to below " +
                                       std::to_string(rows) + (padded ? ", or -1" : ""));
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> first_{kNone};
};

// Calls task(first bag, last bag + 1) for ranges of bags that cost about `per_task`; a bag costs 1 + its ids. The cuts
// depend on the borders alone.
template <typename Task>
void ParallelBags(ffi::ThreadPool& pool, const Bags& bags, int64_t per_task, const Task& task) {
  std::vector<int64_t> cuts = {0};
  int64_t cost = 0;
  for (int64_t b = 0; b < bags.count(); ++b) {
    cost += 1 + bags.borders[b + 1] - bags.borders[b];
    if (cost >= per_task || b + 1 == bags.count()) {
      cuts.push_back(b + 1);
      cost = 0;
    }
  }
  ParallelFor(pool, static_cast<int64_t>(cuts.size()) - 1, [&](int64_t i) { task(cuts[i], cuts[i + 1]); });
}

}  // namespace embedding_bag
}  // namespace tftoolkit

#endif  // TFTOOLKIT_EMBEDDING_BAG_BAGS_H_
