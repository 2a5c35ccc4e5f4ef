// Products of a warp's fragments, matrices from shared memory, and copies that arrive when they are waited for.

#include "tftoolkit/emulation/tensor_core.h"

#include <cstring>
#include <string>
#include <vector>

#include "machine.h"
#include "tftoolkit/float_types.h"

namespace tftoolkit::emulation {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kRows = 16, kColumns = 8, kInner = 16;

float Number(Format format, uint32_t pair, int which) {
  const uint16_t bits = static_cast<uint16_t>(pair >> (16 * which));
  return format == Format::kHalf ? Load(Half{bits}) : Load(BFloat16{bits});
}

Fragments* FragmentsOf(const Thread& lane) { return static_cast<Fragments*>(lane.exchange); }

// The layouts stand in tftoolkit/tensor_core.h.
template <Format kFormat>
void CombineProduct(Machine*, Thread* lanes, unsigned) {
  float a[kRows][kInner], b[kInner][kColumns];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int group = lane / 4, pair = lane % 4 * 2;
    const Fragments& one = *FragmentsOf(lanes[lane]);
    for (int which = 0; which < 2; ++which) {
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][pair + i / 2 * 8 + which] = Number(kFormat, one.a[i], which);
      }
      for (int i = 0; i < 2; ++i) b[pair + i * 8 + which][group] = Number(kFormat, one.b[i], which);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    Fragments* one = FragmentsOf(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < kInner; ++k) one->c[i] += a[row][k] * b[k][column];
    }
  }
}

struct Matrices {
  uint16_t row[8];  // that this lane has loaded
  uint32_t* registers;
  bool transposed;
};

void CombineMatrices(Machine*, Thread* lanes, unsigned) {
  const auto number = [&](int matrix, int row, int column) {
    return uint32_t{static_cast<Matrices*>(lanes[matrix * 8 + row].exchange)->row[column]};
  };
  for (int lane = 0; lane < kWarp; ++lane) {
    const Matrices* one = static_cast<Matrices*>(lanes[lane].exchange);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      one->registers[i] = one->transposed ? number(i, pair, group) | number(i, pair + 1, group) << 16
                                          : number(i, group, pair) | number(i, group, pair + 1) << 16;
    }
  }
}

void RequireShared(Machine* machine, const void* address, const char* what, const void* pc) {
  const Region* region = machine->memory().Find(address);
  if (region != nullptr && region->space != Space::kShared) {
    machine->FindAtInstruction(std::string(what) + " on " + region->name + ", which is no shared memory", pc);
  }
}

// What a copy brings arrives as if this thread stored it now.
void Deliver(Machine* machine, const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.size);
  machine->memory().Arrive(copy.to, copy.size, machine->Acting(nullptr));
}

}  // namespace

void MultiplyFragments(Format format, Fragments* fragments, Place place) {
  const auto combine = format == Format::kHalf ? CombineProduct<Format::kHalf> : CombineProduct<Format::kBFloat16>;
  Machine::Current()->Meet("Mma", kAllLanes, place, fragments, combine);
}

void LoadMatrices(uint32_t* registers, const void* row, bool transposed, Place place) {
  Machine* machine = Machine::Current();
  const void* pc = __builtin_return_address(0);
  Matrices matrices{{}, registers, transposed};
  machine->CheckAligned(row, sizeof matrices.row, pc);
  RequireShared(machine, row, "LoadMatrix", pc);
  machine->Access(row, sizeof matrices.row, Kind::kLoad, pc);
  std::memcpy(matrices.row, row, sizeof matrices.row);
  machine->Meet("LoadMatrix", kAllLanes, place, &matrices, CombineMatrices);
}

void CopyAsync(void* shared, const void* global, size_t size) {
  Machine* machine = Machine::Current();
  const void* pc = __builtin_return_address(0);
  machine->CheckAligned(shared, size, pc);
  machine->CheckAligned(global, size, pc);
  RequireShared(machine, shared, "CopyAsync", pc);
  machine->Access(global, size, Kind::kLoad, pc);
  machine->Access(shared, size, Kind::kCopyStore, pc);
  Thread* self = machine->thread();
  self->copies.push_back({shared, global, size, false, 0});
}

void CommitCopies() {
  Thread* self = Machine::Current()->thread();
  for (Copy& copy : self->copies) {
    if (!copy.committed) copy = {copy.to, copy.from, copy.size, true, self->groups};
  }
  ++self->groups;
}

void WaitForCopies(int left) {
  Machine* machine = Machine::Current();
  Thread* self = machine->thread();
  std::vector<Copy> rest;
  for (const Copy& copy : self->copies) {
    if (copy.committed && copy.group < self->groups - left) {
      Deliver(machine, copy);
    } else {
      rest.push_back(copy);
    }
  }
  self->copies.swap(rest);
}

}  // namespace tftoolkit::emulation
