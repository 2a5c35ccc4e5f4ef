// Rotary position embedding on the CPU: of each head at position p, pair i of the first `dim` numbers is turned by the
// angle p * base^(-2i / dim); the others are copied. The inverse turns back, which is the gradient.
//
//   (a, b) -> (a cos - b sin, b cos + a sin)       pairs (x[i], x[i + dim/2]), or interleaved (x[2i], x[2i + 1])
//
// The floor is memory traffic: x is read and y written once. Sines and cosines are computed once for each position and
// used for all heads, and, where all rows of the batch have the same positions, for all rows; they are never stored in
// memory. Angles are float64: as float32 the angle of position 1e6 would be off by 0.03.

#include <cmath>
#include <cstring>
#include <vector>

#include "angles.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/math.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Data;
using tftoolkit::Half;
using tftoolkit::Load;
using tftoolkit::Store;
namespace rotary = tftoolkit::rotary;

constexpr int64_t kElementsPerTask = 1 << 15;  // some 10 µs

TK_SIMD void Angles(double position, const double* frequencies, float* sines, float* cosines, int64_t pairs,
                    float direction) {
#pragma omp simd
  for (int64_t i = 0; i < pairs; ++i) {
    const tftoolkit::SineCosine both = tftoolkit::SinCos(position * frequencies[i]);
    sines[i] = both.sine * direction;
    cosines[i] = both.cosine;
  }
}

struct Shape {
  int64_t heads, depth, pairs;
  bool interleaved;
};

// The heads of one token.
template <typename T>
TK_INLINE void Turn(const T* x, T* y, const float* sines, const float* cosines, Shape shape) {
  const int64_t pairs = shape.pairs, dim = 2 * pairs;
  for (int64_t head = 0; head < shape.heads; ++head, x += shape.depth, y += shape.depth) {
    if (shape.interleaved) {
#pragma omp simd
      for (int64_t i = 0; i < pairs; ++i) {
        const float a = Load(x[2 * i]), b = Load(x[2 * i + 1]);
        y[2 * i] = Store<T>(a * cosines[i] - b * sines[i]);
        y[2 * i + 1] = Store<T>(b * cosines[i] + a * sines[i]);
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < pairs; ++i) {
        const float a = Load(x[i]), b = Load(x[pairs + i]);
        y[i] = Store<T>(a * cosines[i] - b * sines[i]);
        y[pairs + i] = Store<T>(b * cosines[i] + a * sines[i]);
      }
    }
    if (dim < shape.depth) std::memcpy(y + dim, x + dim, (shape.depth - dim) * sizeof(T));
  }
}

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_TURN(T)                                                                                  \
  TK_SIMD void TurnHeads(const T* x, T* y, const float* sines, const float* cosines, Shape shape) { \
    Turn<T>(x, y, sines, cosines, shape);                                                           \
  }
TK_TURN(float)
TK_TURN(BFloat16)
TK_TURN(Half)

// The positions of `rows` sequences, which is 1 where all are alike; or an error. Empty `given`: start, start + 1, …
ffi::Error Positions(const ffi::AnyBuffer& given, bool has_positions, int64_t start, int64_t batch, int64_t length,
                     std::vector<int64_t>& positions) {
  if (has_positions) {
    const int64_t rows = given.dimensions()[0];
    if (ffi::Error error = rotary::CheckRows(rows, batch); error.failure()) return error;
    positions.resize(rows * length);
    const auto copy = [&](auto type) {
      const auto* from = Data<decltype(type)>(given);
      for (size_t i = 0; i < positions.size(); ++i) positions[i] = from[i];
      return ffi::Error::Success();
    };
    if (ffi::Error error = tftoolkit::WithIntegerType("RotaryEmbedding", given.element_type(), copy); error.failure()) {
      return error;
    }
  } else {
    positions.resize(length);
    for (int64_t i = 0; i < length; ++i) positions[i] = start + i;
  }
  for (const int64_t position : positions) {
    if (position < -rotary::kLimit || position >= rotary::kLimit) return rotary::BadPosition(position);
  }
  return ffi::Error::Success();
}

ffi::Error RotaryEmbedding(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer given, ffi::Result<ffi::AnyBuffer> y,
                           double base, int64_t dim, bool has_positions, bool interleaved, bool inverse,
                           int64_t start) {
  const auto dims = x.dimensions();
  const int64_t batch = dims[0], length = dims[1], heads = dims[2], depth = dims[3];
  if (ffi::Error error = rotary::CheckNumbers(depth, base, start, dim); error.failure()) return error;
  std::vector<int64_t> positions;
  if (ffi::Error error = Positions(given, has_positions, start, batch, length, positions); error.failure()) {
    return error;
  }
  const Shape shape{heads, depth, dim / 2, interleaved};
  std::vector<double> frequencies(shape.pairs);
  for (int64_t i = 0; i < shape.pairs; ++i) frequencies[i] = std::pow(base, -2.0 * i / dim);
  const int64_t angles = static_cast<int64_t>(positions.size()), token = heads * depth;
  const int64_t repeats = angles == length ? batch : 1;  // rows of x that share a position
  const int64_t per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, repeats * token));
  return tftoolkit::WithFloatType("RotaryEmbedding", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = Data<T>(x);
    T* to = Data<T>(y);
    tftoolkit::ParallelRanges(pool, angles, per_task, [&](int64_t begin, int64_t count) {
      std::vector<float> sines(shape.pairs), cosines(shape.pairs);
      for (int64_t i = begin; i < begin + count; ++i) {
        Angles(static_cast<double>(positions[i]), frequencies.data(), sines.data(), cosines.data(), shape.pairs,
               inverse ? -1.0f : 1.0f);
        for (int64_t row = 0; row < repeats; ++row) {
          const int64_t offset = (row * length + i) * token;
          TurnHeads(from + offset, to + offset, sines.data(), cosines.data(), shape);
        }
      }
    });
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(RotaryEmbeddingCpu, RotaryEmbedding,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("base")
                           .Attr<int64_t>("dim")
                           .Attr<bool>("has_positions")
                           .Attr<bool>("interleaved")
                           .Attr<bool>("inverse")
                           .Attr<int64_t>("start"));

TK_OP(RotaryEmbedding,
      "<T: f32 | bf16 | f16, I: i32 | i64>"
      "(x: T[batch length heads depth], positions?: I[rows length], *, base: f64 = 10000.0, dim: i64 = 0,"
      " interleaved: bool = false, start: i64 = 0, inverse: bool = false) -> (y: T[batch length heads depth])");
TK_KERNEL(RotaryEmbedding, CPU, RotaryEmbeddingCpu);
