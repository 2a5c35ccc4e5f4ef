// Barriers and the collectives of a warp: the last lane to come computes everybody's result.

#include <algorithm>
#include <string>

#include "machine.h"
#include "tftoolkit/emulation/device.h"

namespace tftoolkit::emulation {
namespace {

struct ShuffleExchange {
  Shuffle kind;
  uint64_t bits;
  int argument, width;
  uint64_t result;
};

// Which lane's value a lane gets; its own number where the source lies outside of its segment (PTX, shfl.sync).
int SourceLane(const ShuffleExchange& one, int lane) {
  const int segment = lane / one.width * one.width;
  int source = lane;
  switch (one.kind) {
    case Shuffle::kIndex:
      return segment + (one.argument & (one.width - 1));
    case Shuffle::kUp:
      source = lane - one.argument;
      return source < segment ? lane : source;
    case Shuffle::kDown:
      source = lane + one.argument;
      break;
    case Shuffle::kXor:
      source = lane ^ one.argument;
      break;
  }
  return source >= segment + one.width || source < 0 ? lane : source;
}

void CombineShuffle(Machine* machine, Thread* lanes, unsigned mask) {
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    ShuffleExchange* one = static_cast<ShuffleExchange*>(lanes[lane].exchange);
    const int source = SourceLane(*one, lane);
    if ((mask >> source & 1) == 0) {
      machine->FindAt("a shuffle gives lane " + std::to_string(lane) + " the value of lane " + std::to_string(source) +
                          ", which its mask lacks",
                      machine->thread()->place);
    }
    one->result = static_cast<ShuffleExchange*>(lanes[source].exchange)->bits;
  }
}

struct MaskExchange {
  uint64_t value;
  unsigned result;
};

void CombineBallot(Machine*, Thread* lanes, unsigned mask) {
  unsigned votes = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) != 0 && static_cast<MaskExchange*>(lanes[lane].exchange)->value != 0) votes |= 1u << lane;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) != 0) static_cast<MaskExchange*>(lanes[lane].exchange)->result = votes;
  }
}

void CombineMatch(Machine*, Thread* lanes, unsigned mask) {
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    MaskExchange* one = static_cast<MaskExchange*>(lanes[lane].exchange);
    one->result = 0;
    for (int other = 0; other < kWarp; ++other) {
      const bool there = (mask >> other & 1) != 0;
      if (there && static_cast<MaskExchange*>(lanes[other].exchange)->value == one->value) one->result |= 1u << other;
    }
  }
}

}  // namespace

void SyncThreads(Place place) { Machine::Current()->SyncThreads("__syncthreads()", place); }

int SyncThreadsVote(Vote vote, bool predicate, Place place) {
  Machine* machine = Machine::Current();
  machine->thread()->vote = predicate;
  machine->SyncThreads("__syncthreads() with a vote", place);
  int count = 0;
  for (int i = 0; i < machine->threads(); ++i) count += machine->thread_at(i).vote;
  machine->SyncThreads("__syncthreads() with a vote", place);  // until all have counted
  return vote == Vote::kCount ? count : vote == Vote::kAnd ? count == machine->threads() : count > 0;
}

void SyncWarp(unsigned mask, Place place) {
  const auto combine = [](Machine*, Thread* lanes, unsigned all) { Machine::OrderLanes(lanes, all); };
  Machine::Current()->Meet("__syncwarp()", mask, place, nullptr, combine);
}

uint64_t ShuffleBits(Shuffle kind, unsigned mask, uint64_t bits, int argument, int width, Place place) {
  Machine* machine = Machine::Current();
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0) {
    machine->FindAt("a shuffle of width " + std::to_string(width) + "; it is a power of two up to 32", place);
  }
  ShuffleExchange exchange{kind, bits, argument, width, 0};
  machine->Meet("a shuffle", mask, place, &exchange, CombineShuffle);
  return exchange.result;
}

unsigned Ballot(unsigned mask, bool predicate, Place place) {
  MaskExchange exchange{predicate, 0};
  Machine::Current()->Meet("a vote of the warp", mask, place, &exchange, CombineBallot);
  return exchange.result;
}

unsigned MatchAny(unsigned mask, uint64_t bits, Place place) {
  MaskExchange exchange{bits, 0};
  Machine::Current()->Meet("__match_any_sync()", mask, place, &exchange, CombineMatch);
  return exchange.result;
}

// Any subset that holds the caller is right; a kernel that takes it for more than itself is in error.
unsigned ActiveMask() { return 1u << LaneIndex(); }

}  // namespace tftoolkit::emulation
