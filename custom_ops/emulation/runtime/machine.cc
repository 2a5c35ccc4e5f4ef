#include "machine.h"

#include <algorithm>
#include <numeric>

#include "findings.h"
#include "report.h"

namespace tftoolkit::emulation {
namespace {

constexpr uint64_t kMaxThreads = 1024;
constexpr size_t kMaxStaticShared = 48 << 10;

thread_local Stacks stacks;

}  // namespace

thread_local Machine* Machine::current_ = nullptr;

Machine::Machine(const Program& program, const Settings& settings)
    : program(program), settings(settings), random_(settings.seed) {}

Machine* Machine::Current() { return current_; }

bool Machine::Valid(const Launched& launch) {
  const dim3 grid = launch.grid, block = launch.block;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  std::string wrong;
  if (threads == 0 || threads > kMaxThreads || block.z > 64) {
    wrong = "a block of " + Triple({block.x, block.y, block.z}) + " threads; it has 1 to 1024, 64 at most in z";
  } else if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    wrong = "a grid of " + Triple({grid.x, grid.y, grid.z}) +
            " blocks; each number is at least 1, and y and z at most 65535";
  } else if (launch.shared_bytes > dynamic_limit) {
    wrong = std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory, more than " +
            std::to_string(dynamic_limit) + "; cudaFuncSetAttribute allows more, up to 163 KiB on sm_80";
  }
  if (wrong.empty()) return true;
  Fail(cudaErrorInvalidConfiguration,
       std::string("kernel ") + launch.kernel + " is launched with " + wrong + ", " + Describe(launch.place));
  return false;
}

void Machine::Run(const Launched& launch, void (*body)(void*), void* data) {
  if (error != cudaSuccess || !Valid(launch)) return;  // as on a GPU, a failed launch lets no later one run
  launch_ = &launch;
  body_ = body;
  data_ = data;
  kernel_pc_ = nullptr;
  stopped_ = false;
  const dim3 block = launch.block;
  threads_.assign(block.x * block.y * block.z, Thread{});
  warps_.assign((threads_.size() + kWarp - 1) / kWarp, Warp{});
  order_.resize(warps_.size());
  std::iota(order_.begin(), order_.end(), 0);
  memory_.BeginLaunch(block_number_ + 1);
  // A random start and a stride that shares no factor with the grid: a random order without a list of all blocks.
  const dim3 grid = launch.grid;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  uint64_t stride = settings.seed == 0 ? 1 : random_() % blocks | 1;
  while (std::gcd(stride, blocks) != 1) stride += 2;
  uint64_t place = settings.seed == 0 ? 0 : random_() % blocks;
  for (uint64_t i = 0; i < blocks && !stopped_; ++i, place = (place + stride % blocks) % blocks) {
    block_ = {static_cast<unsigned>(place % grid.x), static_cast<unsigned>(place / grid.x % grid.y),
              static_cast<unsigned>(place / grid.x / grid.y)};
    RunBlock();
  }
  for (const SharedArray& array : shared_) memory_.Drop(array.region);
  shared_.clear();
  launch_ = nullptr;
}

void Machine::StartBlock() {
  const dim3 size = launch_->block;
  ++block_number_;
  epoch_ = 0;
  static_bytes_ = 0;
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    const unsigned n = static_cast<unsigned>(i);
    thread.state = State::kNew;
    thread.index = {n % size.x, n / size.x % size.y, n / size.x / size.y};
    thread.number = static_cast<uint16_t>(i);
    thread.clock = 1;
    std::fill(std::begin(thread.seen), std::end(thread.seen), 0);
    thread.copies.clear();
    thread.groups = 0;
    thread.fenced = false;
  }
  for (Warp& warp : warps_) warp.meetings.clear();
}

void Machine::RunBlock() {
  StartBlock();
  do {
    if (settings.seed != 0) std::shuffle(order_.begin(), order_.end(), random_);
    RunWarps();
  } while (!stopped_ && OpenBarrier());
  for (Thread& thread : threads_) {
    if (thread.stack.low != nullptr) stacks.Return(thread.stack);
    thread.stack = {};
  }
}

// Until every thread has gone or waits for others.
void Machine::RunWarps() {
  int lanes[kWarp];
  for (bool progress = true; progress && !stopped_;) {
    progress = false;
    for (const int warp : order_) {
      const int first = warp * kWarp;
      const int count = std::min<int>(kWarp, threads() - first);
      std::iota(lanes, lanes + count, first);
      if (settings.seed != 0) std::shuffle(lanes, lanes + count, random_);
      // A warp goes on until it waits: what it does in one go can be the most at odds with the others.
      for (bool again = true; again && !stopped_;) {
        again = false;
        for (int i = 0; i < count && !stopped_; ++i) {
          Thread& thread = threads_[lanes[i]];
          if (thread.state != State::kNew && thread.state != State::kReady) continue;
          Resume(&thread);
          again = progress = true;
        }
      }
      if (stopped_) return;
    }
  }
}

// Lets the threads at the barrier go on. False when the block has ended, or is stuck, which is a finding.
bool Machine::OpenBarrier() {
  const Thread* one = nullptr;
  bool all_here = true;
  int gone = 0;
  for (const Thread& thread : threads_) {
    if (thread.state == State::kGone) {
      ++gone;
    } else if (thread.state != State::kAtBarrier) {
      all_here = false;
    } else {
      one = one ? one : &thread;
      all_here &= one->place.line == thread.place.line && SameFile(one->place, thread.place);
    }
  }
  if (gone == threads()) return false;
  if (!all_here || gone > 0) {
    ReportStuck();
    return false;
  }
  ++epoch_;
  for (Thread& thread : threads_) thread.state = State::kReady;
  return true;
}

void Machine::Resume(Thread* thread) {
  if (thread->state == State::kNew) {
    thread->stack = stacks.Take();
    Prepare(&thread->context, thread->stack, &ThreadMain);
  }
  thread->state = State::kReady;
  thread_ = thread;
  Switch(&scheduler_, &thread->context);
  thread_ = nullptr;
  if (thread->state == State::kGone) {  // the next thread's cache is warm with it
    stacks.Return(thread->stack);
    thread->stack = {};
  }
}

void Machine::ThreadMain() {
  Machine* machine = current_;
  machine->body_(machine->data_);
  machine->thread_->state = State::kGone;
  Switch(&machine->thread_->context, &machine->scheduler_);
}

void Machine::Wait(State state, const char* what, Place place) {
  Thread* self = thread_;
  self->state = state;
  self->place = place;
  self->waits_for = what;
  Switch(&self->context, &scheduler_);
}

void Machine::SyncThreads(const char* what, Place place) { Wait(State::kAtBarrier, what, place); }

void Machine::Meet(const char* what, unsigned mask, Place place, void* exchange, Combine combine) {
  Thread* self = thread_;
  const unsigned lane = self->number % kWarp, bit = 1u << lane;
  if ((mask & bit) == 0) {
    FindAt(std::string(what) + " with a mask that lacks the calling lane " + std::to_string(lane), place);
  }
  Warp& warp = warps_[self->number / kWarp];
  const auto same = [&](const Meeting& one) {
    return one.mask == mask && one.place.line == place.line && SameFile(one.place, place);
  };
  auto meeting = std::find_if(warp.meetings.begin(), warp.meetings.end(), same);
  if (meeting == warp.meetings.end()) meeting = warp.meetings.insert(meeting, {place, mask, 0});
  meeting->arrived |= bit;
  self->exchange = exchange;
  self->mask = mask;
  if (meeting->arrived != mask) {
    Wait(State::kInWarp, what, place);
    return;
  }
  warp.meetings.erase(meeting);
  Thread* lanes = &threads_[self->number / kWarp * kWarp];
  self->place = place;
  combine(this, lanes, mask);
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) != 0) lanes[i].state = State::kReady;
  }
}

void Machine::OrderLanes(Thread* lanes, unsigned mask) {
  uint16_t seen[kWarp] = {};
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) == 0) continue;
    for (int j = 0; j < kWarp; ++j) seen[j] = std::max(seen[j], lanes[i].seen[j]);
    seen[i] = std::max(seen[i], lanes[i].clock);
  }
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) == 0) continue;
    std::copy(std::begin(seen), std::end(seen), std::begin(lanes[i].seen));
    ++lanes[i].clock;
  }
}

void* Machine::Shared(const void* site, const char* name, size_t size, size_t alignment) {
  SharedArray* array = FindShared(site);
  if (array == nullptr || array->block != block_number_) {
    static_bytes_ += size;
    if (static_bytes_ > kMaxStaticShared) {
      Find("its shared arrays, the last of which is " + std::string(name) + ", hold " + std::to_string(static_bytes_) +
           " bytes, more than 48 KiB");
    }
  }
  return PlaceShared(array, site, name, size, alignment);
}

void* Machine::DynamicShared(size_t alignment) {
  static const char site = 0;
  constexpr size_t kPromised = 16;
  return PlaceShared(FindShared(&site), &site, "(dynamic)", launch_->shared_bytes, std::max(alignment, kPromised));
}

Machine::SharedArray* Machine::FindShared(const void* site) {
  const auto is_it = [&](const SharedArray& one) { return one.site == site; };
  const auto found = std::find_if(shared_.begin(), shared_.end(), is_it);
  return found == shared_.end() ? nullptr : &*found;
}

// The array's memory; a block's first thread to come finds nothing in it.
void* Machine::PlaceShared(SharedArray* array, const void* site, const char* name, size_t size, size_t alignment) {
  if (array == nullptr) {
    char* memory = memory_.Allocate(Space::kShared, name, size, alignment);
    if (memory == nullptr) Find("no memory to emulate shared array " + std::string(name));
    shared_.push_back({site, memory_.Newest(), block_number_});
    return memory;
  }
  if (array->block != block_number_) memory_.Renew(array->region);
  array->block = block_number_;
  return array->region->begin;
}

}  // namespace tftoolkit::emulation
