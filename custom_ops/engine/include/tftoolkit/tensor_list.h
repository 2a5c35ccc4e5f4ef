// Cuts the tensors of a list into tasks of equal size, for kernels that treat many tensors in one call.
//
// Elements are counted through all tensors: a hundred biases are one task, a large matrix is many. The cuts depend on
// the tensors' sizes alone, so sums over pieces do not depend on the number of threads.

#ifndef TFTOOLKIT_TENSOR_LIST_H_
#define TFTOOLKIT_TENSOR_LIST_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tftoolkit {

class TensorList {
 public:
  // A task should be tens of µs of work: waking another thread takes as long.
  TensorList(size_t count, int64_t elements_per_task) : per_task_(elements_per_task) { ends_.reserve(count); }

  void Add(int64_t elements) { ends_.push_back(total() + elements); }

  int64_t total() const { return ends_.empty() ? 0 : ends_.back(); }

  int64_t tasks() const { return (total() + per_task_ - 1) / per_task_; }

  // Calls piece(tensor, begin, count) for each tensor that has elements in the task, with the range of these.
  template <typename Piece>
  void ForEachPiece(int64_t task, const Piece& piece) const {
    int64_t position = task * per_task_;
    const int64_t end = std::min(position + per_task_, total());
    size_t tensor = std::upper_bound(ends_.begin(), ends_.end(), position) - ends_.begin();
    for (; position < end; ++tensor) {
      const int64_t first = tensor == 0 ? 0 : ends_[tensor - 1];
      const int64_t stop = std::min(ends_[tensor], end);
      if (stop > position) piece(tensor, position - first, stop - position);
      position = stop;
    }
  }

 private:
  int64_t per_task_;
  std::vector<int64_t> ends_;  // after each tensor, how many elements there are up to here
};

}  // namespace tftoolkit

#endif  // TFTOOLKIT_TENSOR_LIST_H_
