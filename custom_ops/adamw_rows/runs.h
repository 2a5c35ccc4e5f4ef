// Ids sorted into runs of equal ones, and cut into tasks that hold whole runs.

#ifndef TFTOOLKIT_ADAMW_ROWS_RUNS_H_
#define TFTOOLKIT_ADAMW_ROWS_RUNS_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"

namespace adamw_rows {

struct Place {
  uint64_t id;    // above the smallest one
  int64_t place;  // among the ids that were given
};

class Runs {
 public:
  template <typename Id>
  Runs(const Id* ids, int64_t count) : places_(count) {
    if (count == 0) return;
    const auto [least, most] = std::minmax_element(ids, ids + count);
    least_ = *least;
    // Differences of numbers with a sign may need all bits.
    const auto above = [&](Id id) { return static_cast<uint64_t>(id) - static_cast<uint64_t>(least_); };
    for (int64_t i = 0; i < count; ++i) places_[i] = {above(ids[i]), i};
    Sort(above(*most));
  }

  // The id of a run, and where each of its members was given, in that order.
  struct Run {
    int64_t id;
    const Place *begin, *end;
    bool repeats() const { return end - begin > 1; }
  };

  // A part of the sorted ids.
  class Range {
   public:
    Range(const Place* begin, const Place* end, int64_t least) : begin_(begin), end_(end), least_(least) {}

    bool empty() const { return begin_ == end_; }
    int64_t size() const { return end_ - begin_; }
    int64_t id(int64_t i) const { return static_cast<int64_t>(begin_[i].id + static_cast<uint64_t>(least_)); }
    int64_t place(int64_t i) const { return begin_[i].place; }

    // Takes the first run away.
    Run Next() {
      const Place* const begin = begin_;
      do ++begin_;
      while (begin_ != end_ && begin_->id == begin->id);
      return {static_cast<int64_t>(begin->id + static_cast<uint64_t>(least_)), begin, begin_};
    }

   private:
    const Place *begin_, *end_;
    int64_t least_;
  };

  // Calls task(range) for ranges of about `per_task` ids. Where they are cut depends on the ids and this number alone.
  template <typename Task>
  void Parallel(ffi::ThreadPool& pool, int64_t per_task, const Task& task) const {
    tftoolkit::ParallelRanges(pool, static_cast<int64_t>(places_.size()), per_task, [&](int64_t begin, int64_t count) {
      const Range range(RunFrom(begin), RunFrom(begin + count), least_);
      if (!range.empty()) task(range);
    });
  }

 private:
  // By id, those of one id as they were given: digit by digit from the lowest, each time keeping the order before.
  void Sort(uint64_t most) {
    constexpr int kBits = 11;  // 2,048 counts stay in the first-level cache
    std::vector<Place> sorted(places_.size());
    for (int shift = 0; shift < 64 && most >> shift; shift += kBits) {
      const auto digit = [&](const Place& one) { return (one.id >> shift) & ((1 << kBits) - 1); };
      std::array<int64_t, 1 << kBits> next = {};
      for (const Place& one : places_) ++next[digit(one)];
      int64_t before = 0;
      for (int64_t& count : next) before += std::exchange(count, before);
      for (const Place& one : places_) sorted[next[digit(one)]++] = one;
      places_.swap(sorted);
    }
  }

  // Where the first run at or behind place i begins.
  const Place* RunFrom(int64_t i) const {
    const auto at = places_.begin() + i;
    if (i == 0 || at == places_.end()) return places_.data() + i;
    const auto next =
        std::upper_bound(at, places_.end(), at[-1].id, [](uint64_t id, const Place& one) { return id < one.id; });
    return places_.data() + (next - places_.begin());
  }

  std::vector<Place> places_;
  int64_t least_ = 0;
};

}  // namespace adamw_rows

#endif  // TFTOOLKIT_ADAMW_ROWS_RUNS_H_
