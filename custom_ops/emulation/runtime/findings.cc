// What the machine finds wrong, in words: the first finding of a call ends its kernel, and later launches do nothing.

#include "findings.h"

#include <algorithm>
#include <utility>

#include "machine.h"
#include "report.h"

namespace tftoolkit::emulation {

std::string Triple(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

Actor Machine::Acting(const void* pc) const {
  Moment now{block_number_, Offset(program, pc), thread_->number, epoch_, thread_->clock, false, false};
  return {now, thread_->seen};
}

void Machine::Access(const void* address, size_t size, Kind kind, const void* pc) {
  if (thread_->stack.Contains(address)) return;
  if (kind == Kind::kStore) thread_->fenced = false;  // a fence is for what came before it
  Conflict conflict;
  if (memory_.Access(address, size, kind, Acting(pc), &conflict)) return;
  const bool loads = kind == Kind::kLoad || kind == Kind::kAtomicLoad;
  if (memory_.Find(address) == nullptr && Contains(program, address)) {  // constants and variables of the .cu file
    if (loads || kind == Kind::kAtomicStore) return;
    conflict.what = "store to a variable outside of the kernel, which stays on the host";
  }
  std::string text = conflict.what + ", " + Source(program, Offset(program, pc));
  const Moment& other = conflict.other;
  if (other.block != 0) {
    const bool here = other.block == block_number_;
    text += other.arriving ? "; it was started by " : "; no barrier orders it after what was done by ";
    text += here ? Who(threads_[other.thread]) : "thread " + std::to_string(other.thread) + " of another block";
    text += ", " + Source(program, other.pc);
  }
  Find(text);
}

void Machine::CheckAligned(const void* address, size_t alignment, const void* pc) {
  if (reinterpret_cast<uintptr_t>(address) % alignment == 0) return;
  const Region* region = memory_.Find(address);
  const std::string place =
      region == nullptr
          ? memory_.Describe(address)
          : region->name + " + " + std::to_string(static_cast<const char*>(address) - region->begin) + " bytes";
  Find("misaligned access: " + place + " is no multiple of " + std::to_string(alignment) + ", " +
       Source(program, Offset(program, pc)));
}

void Machine::HostTouches(const void* address, const void* pc) {
  const Region* region = memory_.Find(address);
  if (region == nullptr) return;
  Fail(cudaErrorInvalidValue, "host code touches " + region->name + ", which is in the device's memory, " +
                                  Source(program, Offset(program, pc)));
}

bool Machine::HostMayUse(const void* address, size_t size, bool stores) {
  std::string wrong;
  if (error == cudaSuccess && memory_.HostAccess(address, size, stores, &wrong)) return true;
  Fail(cudaErrorInvalidValue, std::string(stores ? "the host writes to " : "the host reads from ") + wrong);
  return false;
}

std::string Machine::Who(const Thread& thread) const { return "thread " + Triple(thread.index); }

void Machine::Conclude(const Thread& thread, const std::string& text) {
  const std::string kernel =
      kernel_pc_ == nullptr ? launch_->kernel : KernelName(program, Offset(program, kernel_pc_), launch_->kernel);
  error = cudaErrorLaunchFailure;
  finding = "kernel " + kernel + ", block " + Triple(block_) + ", " + Who(thread) + ": " + text;
  stopped_ = true;
}

void Machine::Find(const std::string& text) {
  Conclude(*thread_, text);
  Context nowhere;  // this thread is never resumed
  Switch(&nowhere, &scheduler_);
  __builtin_unreachable();
}

void Machine::FindAt(const std::string& what, Place place) { Find(what + ", " + Describe(place)); }

void Machine::FindAtInstruction(const std::string& what, const void* pc) {
  Find(what + ", " + Source(program, Offset(program, pc)));
}

void Machine::Fail(cudaError_t code, std::string text) {
  if (error != cudaSuccess) return;
  error = code;
  finding = std::move(text);
}

// No thread can go on: names one that waits, and one that it waits for in vain.
void Machine::ReportStuck() {
  // Who hangs in a collective keeps the others at the barrier.
  const auto in_state = [&](State state) {
    return std::find_if(threads_.begin(), threads_.end(), [&](const Thread& one) { return one.state == state; });
  };
  auto waiting = in_state(State::kInWarp);
  if (waiting == threads_.end()) waiting = in_state(State::kAtBarrier);
  const bool in_warp = waiting->state == State::kInWarp;
  const int first = in_warp ? waiting->number / kWarp * kWarp : 0;
  const int count = in_warp ? kWarp : threads();
  std::string text = std::string(waiting->waits_for) + ", " + Describe(waiting->place) + ", waits for ever: ";
  for (int i = 0; i < count; ++i) {
    if (in_warp && (waiting->mask >> i & 1) == 0) continue;
    if (first + i >= threads()) {
      text += "its mask names lane " + std::to_string(i) + ", which this warp lacks";
      break;
    }
    const Thread& other = threads_[first + i];
    if (other.state == State::kGone) {
      text += Who(other) + " has left the kernel";
      break;
    }
    const bool same = other.place.line == waiting->place.line && SameFile(other.place, waiting->place);
    if (same && other.state == waiting->state && (!in_warp || other.mask == waiting->mask)) continue;
    text += Who(other) + " waits at " + other.waits_for + ", " + Describe(other.place);
    break;
  }
  Conclude(*waiting, text);
}

void Machine::EnterFunction(const void* pc) {
  if (kernel_pc_ == nullptr) kernel_pc_ = pc;
}

}  // namespace tftoolkit::emulation
