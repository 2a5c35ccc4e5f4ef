// ParallelFor over the thread pool that the host lends to a kernel.

#ifndef TFTOOLKIT_PARALLEL_H_
#define TFTOOLKIT_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace tftoolkit {

// Calls task(i) once for every i in [0, count), on the caller's thread and on the pool's.
//
// Tasks are claimed one by one, and the caller claims too: it waits only for tasks that have already begun. So a pool
// whose threads are all busy, or are themselves waiting here, costs speed but cannot deadlock (XLA may run the handler
// on a thread of the very pool that it lends). Which thread runs a task is left open, so results must depend on i
// alone.
//
// What a task throws is thrown again here, on the caller's thread, when no task runs any more; of several exceptions
// the first one. Tasks that had not begun by then are left out. (An exception that leaves a task given to
// `pool.Schedule` by hand ends the process: there is nobody on that thread to catch it.)
template <typename Task>
void ParallelFor(xla::ffi::ThreadPool& pool, int64_t count, const Task& task) {
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  struct State {  // outlives the call: a helper may wake up when everything is done
    std::atomic<int64_t> next{0};
    int64_t done = 0;          // guarded by mutex, as is the next
    std::exception_ptr error;  // the first one
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto state = std::make_shared<State>();
  auto work = [state, count, &task] {
    int64_t mine = 0;
    std::exception_ptr error;
    const auto claim = [&] {
      for (int64_t i; (i = state->next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        ++mine;
        task(i);
      }
    };
#ifdef __cpp_exceptions
    try {
      claim();
    } catch (...) {
      error = std::current_exception();
      mine += std::max<int64_t>(0, count - state->next.exchange(count));  // nobody begins the rest
    }
#else
    claim();
#endif
    if (mine == 0) return;  // `task` may be gone by now; it was not touched
    std::lock_guard<std::mutex> lock(state->mutex);
    if (!state->error) state->error = std::move(error);
    if ((state->done += mine) == count) state->all_done.notify_one();
  };
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([work] { work(); });
  work();
  std::exception_ptr error;
  {
    std::unique_lock<std::mutex> lock(state->mutex);
    state->all_done.wait(lock, [&] { return state->done == count; });
    error = std::move(state->error);
  }
  if (error) std::rethrow_exception(std::move(error));
}

// Cuts [0, total) into ranges of `per_task` and calls task(begin, count) for each. The cuts depend on these two numbers
// alone.
template <typename Task>
void ParallelRanges(xla::ffi::ThreadPool& pool, int64_t total, int64_t per_task, const Task& task) {
  ParallelFor(pool, (total + per_task - 1) / per_task, [&](int64_t i) {
    const int64_t begin = i * per_task;
    task(begin, std::min(per_task, total - begin));
  });
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_PARALLEL_H_
