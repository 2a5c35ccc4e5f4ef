// Products of small matrices that lie in the caches: what attention and cross-entropy are made of. No include guard:
// it is included once for each instruction set, with TK_LANES floats in a vector (see isa.h).
//
// C[rows, columns] = A[rows, depth] B[depth, columns] in float32, where A is read element by element with any two
// strides (so a transposed matrix needs no copy), and B and C are read and written in panels of kPanel columns. A tile
// of kRows rows of one panel is held in registers for the whole depth: kRows x 2 vectors, for each step of the depth
// two loads from B and kRows broadcasts from A. Bytes from the first-level cache per step: 4 (kRows + kPanel), for 2
// kRows kPanel operations; so the two multiply-add units are the limit as long as A and B come from there.
//
// Every element is the sum over the depth in its order, from zero on, and is then added to what there is: it does not
// depend on how rows and columns are cut, and its error is that of one sum.
//
// A and B may also hold pairs of bfloat16 numbers, which AVX512-BF16 multiplies twice as fast: an element of A, and a
// lane of B, is then two neighbours in the depth. Products are exact in float32 and so is the sum but for its rounding.

using Vector = float __attribute__((vector_size(4 * TK_LANES)));
using IntVector = int32_t __attribute__((vector_size(4 * TK_LANES)));
using BitsVector = uint32_t __attribute__((vector_size(4 * TK_LANES)));
using UnalignedBitsVector = uint32_t __attribute__((vector_size(4 * TK_LANES), aligned(4), may_alias));
using UnalignedVector = float __attribute__((vector_size(4 * TK_LANES), aligned(4), may_alias));
using UnalignedIntVector = int32_t __attribute__((vector_size(4 * TK_LANES), aligned(4), may_alias));

constexpr int kLanes = TK_LANES;
constexpr int kPanel = 2 * kLanes;
constexpr int kRows = kLanes == 16 ? 8 : 6;  // of 32, 16 and 16 registers the tile takes 16, 12 and 12

inline int64_t Panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

TK_INLINE Vector LoadVector(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
TK_INLINE void StoreVector(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
TK_INLINE Vector Broadcast(float value) { return value - Vector{}; }

// Two neighbours in the depth, in bfloat16: the first in the lower half.
struct __attribute__((may_alias)) Pair {
  uint32_t bits;
};

TK_INLINE BitsVector LoadVector(const Pair* from) { return *reinterpret_cast<const UnalignedBitsVector*>(from); }
TK_INLINE void StoreVector(Pair* to, BitsVector value) { *reinterpret_cast<UnalignedBitsVector*>(to) = value; }
TK_INLINE BitsVector Broadcast(Pair value) { return value.bits - BitsVector{}; }

TK_INLINE void MultiplyAdd(Vector& sum, Vector a, Vector b) { sum += a * b; }
TK_INLINE void MultiplyAdd(Vector& sum, BitsVector a, BitsVector b) {
#if TK_LANES == 16 && !defined(TK_PLAIN_PAIRS)  // the compiler's own macros do not follow its target pragma
  Vector next = sum;  // by itself: an operand of an assembler line that is part of an array would stay in memory
  asm("vdpbf16ps %2, %1, %0" : "+v"(next) : "v"(a), "v"(b));  // HasBf16Products() says where
  sum = next;
#else
  const auto high = [](BitsVector v) { return reinterpret_cast<Vector>(v & 0xffff0000u); };
  sum += high(a) * high(b);
  sum += high(a << 16) * high(b << 16);
#endif
}

// Elements of A, and rows of B, for a depth.
template <typename Element>
constexpr int64_t kDepthOf = std::is_same_v<Element, Pair> ? 2 : 1;
template <typename Element>
constexpr int64_t Steps(int64_t depth) {
  return (depth + kDepthOf<Element> - 1) / kDepthOf<Element>;
}

// What becomes of C: C = AB, C = C + AB, C = alpha AB or C = alpha C + AB with an alpha for each column of the panel.
enum class Into { kStore, kAdd, kTimes, kScale };

template <int kTileRows, Into kInto, typename Element>
TK_INLINE void Tile(int64_t steps, const Element* a, int64_t a_row, int64_t a_step, const Element* b, int64_t b_step,
                    float* c, int64_t c_row, const float* alpha) {
  Vector sum[kTileRows][2] = {};
  for (int64_t k = 0; k < steps; ++k, a += a_step, b += b_step) {
    const auto left = LoadVector(b), right = LoadVector(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const auto one = Broadcast(a[r * a_row]);
      MultiplyAdd(sum[r][0], one, left);
      MultiplyAdd(sum[r][1], one, right);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r, c += c_row) {
    if constexpr (kInto == Into::kTimes) {
      sum[r][0] *= LoadVector(alpha);
      sum[r][1] *= LoadVector(alpha + kLanes);
    }
    if constexpr (kInto == Into::kAdd) {
      sum[r][0] += LoadVector(c);
      sum[r][1] += LoadVector(c + kLanes);
    }
    if constexpr (kInto == Into::kScale) {
      sum[r][0] += LoadVector(c) * LoadVector(alpha);
      sum[r][1] += LoadVector(c + kLanes) * LoadVector(alpha + kLanes);
    }
    StoreVector(c, sum[r][0]);
    StoreVector(c + kLanes, sum[r][1]);
  }
}

// The last rows, fewer than kRows.
template <int kTileRows, Into kInto, typename Element>
TK_INLINE void LastTile(int64_t rows, int64_t steps, const Element* a, int64_t a_row, int64_t a_step, const Element* b,
                        int64_t b_step, float* c, int64_t c_row, const float* alpha) {
  if constexpr (kTileRows > 0) {
    if (rows == kTileRows) {
      Tile<kTileRows, kInto>(steps, a, a_row, a_step, b, b_step, c, c_row, alpha);
    } else {
      LastTile<kTileRows - 1, kInto>(rows, steps, a, a_row, a_step, b, b_step, c, c_row, alpha);
    }
  }
}

// A matrix that is read element by element: element (r, k) lies at data[r * row + k * step].
template <typename Element>
struct Elements {
  const Element* data;
  int64_t row, step;
};

// C (`c_row` floats from row to row) and B (`b_step` elements from step to step) have `panels` * kPanel columns.
template <Into kInto, typename Element>
void Product(int64_t rows, int64_t panels, int64_t steps, Elements<Element> a, const Element* b, int64_t b_step,
             float* c, int64_t c_row, const float* alpha = nullptr) {
  for (int64_t panel = 0; panel < panels; ++panel, b += kPanel, c += kPanel) {
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      Tile<kRows, kInto>(steps, a.data + r * a.row, a.row, a.step, b, b_step, c + r * c_row, c_row, alpha);
    }
    LastTile<kRows - 1, kInto>(rows - r, steps, a.data + r * a.row, a.row, a.step, b, b_step, c + r * c_row, c_row,
                               alpha);
  }
}
