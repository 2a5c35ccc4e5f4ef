// Rotary position embedding on CUDA; rotary_embedding.cc has the maths.
//
// A thread takes a pack of pairs (16 bytes of each half of a head) of one token, computes their sines and cosines, and
// turns those pairs of up to 8 heads with them; other threads copy what is not turned. Angles are float64, as on the
// CPU: some 40 operations per pair and 8 heads.
//
// Traffic: x is read and y written once, in one launch: the floor. Positions of 32 bits cannot be out of range; those
// of 64 bits may be, and only for them the handler waits for the kernel.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "angles.h"
#include "tftoolkit/cuda.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/math.h"

namespace {

using tftoolkit::Data;
namespace cuda = tftoolkit::cuda;
namespace rotary = tftoolkit::rotary;

constexpr int kThreads = 256;
constexpr int64_t kHeads = 8;  // that a thread turns with one computation of the angles

struct Shape {
  int64_t batch, length, heads, depth, pairs;
  bool interleaved;
};

// None given: start, start + 1, …
struct Positions {
  std::optional<cuda::Integers> given;
  int64_t rows, start;
  unsigned long long* refused;
};

struct Rotation {
  double slope;  // the logarithm, to base 2, of a pair's frequency over that of the pair before
  float direction;
};

__device__ double Position(const Positions& positions, const Shape& shape, int64_t row, int64_t token) {
  if (!positions.given) return static_cast<double>(positions.start + token);
  const int64_t index = (positions.rows == 1 ? 0 : row * shape.length) + token;
  const int64_t position = (*positions.given)[index];
  if (position < -rotary::kLimit || position >= rotary::kLimit) {
    atomicMin(positions.refused, static_cast<unsigned long long>(index));
    return 0;
  }
  return static_cast<double>(position);
}

// Turns a pack of pairs of one head, from pair `i` on.
template <typename T>
__device__ void TurnPairs(const T* x, T* y, const cuda::Values<T>& sines, const cuda::Values<T>& cosines, int64_t i,
                          const Shape& shape, bool packed) {
  constexpr int kPairs = cuda::kPack<T>;
  const int64_t end = shape.interleaved ? 2 * shape.pairs : shape.pairs;
  // The two packs: of the first and of the second half, or neighbours.
  const int64_t one = shape.interleaved ? 2 * i : i, other = shape.interleaved ? one + kPairs : one;
  const int64_t half = shape.interleaved ? 0 : shape.pairs;
  const cuda::Values<T> low = cuda::LoadValues(x, one, end, packed);
  const cuda::Values<T> high = cuda::LoadValues(x + half, other, end, packed);
  cuda::Values<T> new_low, new_high;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    if (shape.interleaved) {
      // Pair j is elements 2 j and 2 j + 1 of both packs.
      const cuda::Values<T>& from = j < kPairs / 2 ? low : high;
      cuda::Values<T>& to = j < kPairs / 2 ? new_low : new_high;
      const int place = 2 * j % kPairs;
      const float a = from.at[place], b = from.at[place + 1];
      to.at[place] = a * cosines.at[j] - b * sines.at[j];
      to.at[place + 1] = b * cosines.at[j] + a * sines.at[j];
    } else {
      const float a = low.at[j], b = high.at[j];
      new_low.at[j] = a * cosines.at[j] - b * sines.at[j];
      new_high.at[j] = b * cosines.at[j] + a * sines.at[j];
    }
  }
  cuda::StoreValues(new_low, y, one, end, packed);
  cuda::StoreValues(new_high, y + half, other, end, packed);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    Turn(const T* x, T* y, Positions positions, Shape shape, Rotation rotation, bool packed) {
  constexpr int kPairs = cuda::kPack<T>;
  const int64_t turning = (shape.pairs + kPairs - 1) / kPairs;
  const int64_t copying = (shape.depth - 2 * shape.pairs + kPairs - 1) / kPairs;
  const int64_t units = turning + copying, groups = (shape.heads + kHeads - 1) / kHeads;
  const int64_t work = shape.batch * shape.length * groups * units;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work; i += int64_t{gridDim.x} * kThreads) {
    const int64_t unit = i % units, group = i / units % groups, token = i / units / groups;
    const int64_t head = group * kHeads, heads = min(kHeads, shape.heads - head);
    const T* from = x + (token * shape.heads + head) * shape.depth;
    T* to = y + (token * shape.heads + head) * shape.depth;
    if (unit >= turning) {
      const int64_t first = 2 * shape.pairs + (unit - turning) * kPairs;
      for (int64_t h = 0; h < heads; ++h, from += shape.depth, to += shape.depth) {
        cuda::StorePack(cuda::LoadPack(from, first, 0, shape.depth, packed), to, first, 0, shape.depth, packed);
      }
      continue;
    }
    const double position = Position(positions, shape, token / shape.length, token % shape.length);
    cuda::Values<T> sines, cosines;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int64_t pair = unit * kPairs + j;
      const double frequency = pair == 0 ? 1.0 : exp2(rotation.slope * static_cast<double>(pair));
      const tftoolkit::SineCosine both = tftoolkit::SinCos(position * frequency);
      sines.at[j] = both.sine * rotation.direction;
      cosines.at[j] = both.cosine;
    }
    for (int64_t h = 0; h < heads; ++h, from += shape.depth, to += shape.depth) {
      TurnPairs(from, to, sines, cosines, unit * kPairs, shape, packed);
    }
  }
}

ffi::Error RotaryEmbedding(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer x, ffi::AnyBuffer given,
                           ffi::Result<ffi::AnyBuffer> y, double base, int64_t dim, bool has_positions,
                           bool interleaved, bool inverse, int64_t start) {
  const auto dims = x.dimensions();
  const int64_t depth = dims[3];
  if (ffi::Error error = rotary::CheckNumbers(depth, base, start, dim); error.failure()) return error;
  Positions positions{std::nullopt, 1, start, nullptr};
  std::optional<cuda::Refusal> refusal;
  if (has_positions) {
    positions.given = cuda::Integers(given);
    positions.rows = given.dimensions()[0];
    if (ffi::Error error = rotary::CheckRows(positions.rows, dims[0]); error.failure()) return error;
  } else if (start + dims[1] > rotary::kLimit) {
    return rotary::BadPosition(std::max(start, rotary::kLimit));
  }
  if (x.element_count() == 0) return ffi::Error::Success();
  if (has_positions && positions.given->wide) {
    refusal.emplace(stream, scratch, *positions.given);
    if (!refusal->first()) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no GPU memory for 8 bytes");
    positions.refused = refusal->first();
  }
  const Shape shape{dims[0], dims[1], dims[2], depth, dim / 2, interleaved};
  const Rotation rotation{-std::log2(base) / static_cast<double>(shape.pairs), inverse ? -1.0f : 1.0f};
  ffi::Error launched = tftoolkit::WithFloatType("RotaryEmbedding", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = Data<T>(x);
    T* to = Data<T>(y);
    const bool packed = cuda::Packed<T>(depth, from, to) && shape.pairs % cuda::kPack<T> == 0;
    const int64_t tokens = shape.batch * shape.length * cuda::Ceil(shape.heads, kHeads);
    const int64_t units = cuda::Ceil(shape.pairs, cuda::kPack<T>) + cuda::Ceil(depth - dim, cuda::kPack<T>);
    const unsigned blocks = tftoolkit::GridBlocks(cuda::Ceil(tokens * units, kThreads), 1 << 20);
    Turn<T><<<blocks, kThreads, 0, stream>>>(from, to, positions, shape, rotation, packed);
    return cuda::Launched();
  });
  if (launched.failure() || !refusal) return launched;
  return refusal->Wait([](int64_t, int64_t position) { return rotary::BadPosition(position); });
}

}  // namespace

// Not command-buffer compatible: it may wait.
XLA_FFI_DEFINE_HANDLER(RotaryEmbeddingCuda, RotaryEmbedding,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("base")
                           .Attr<int64_t>("dim")
                           .Attr<bool>("has_positions")
                           .Attr<bool>("interleaved")
                           .Attr<bool>("inverse")
                           .Attr<int64_t>("start"));

TK_KERNEL(RotaryEmbedding, CUDA, RotaryEmbeddingCuda);
