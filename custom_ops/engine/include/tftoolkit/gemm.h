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

using Vector = float __attribute__((vector_size(4 * TK_LANES)));
using IntVector = int32_t __attribute__((vector_size(4 * TK_LANES)));
using BitsVector = uint32_t __attribute__((vector_size(4 * TK_LANES)));
using UnalignedVector = float __attribute__((vector_size(4 * TK_LANES), aligned(4), may_alias));
using UnalignedIntVector = int32_t __attribute__((vector_size(4 * TK_LANES), aligned(4), may_alias));

constexpr int kLanes = TK_LANES;
constexpr int kPanel = 2 * kLanes;
constexpr int kRows = kLanes == 16 ? 8 : 6;  // of 32, 16 and 16 registers the tile takes 16, 12 and 12

inline int64_t Panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

TK_INLINE Vector LoadVector(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
TK_INLINE void StoreVector(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
TK_INLINE Vector Broadcast(float value) { return value - Vector{}; }

// What becomes of C: C = AB, C = C + AB, or C = alpha C + AB with an alpha for each column of the panel.
enum class Into { kStore, kAdd, kScale };

template <int kTileRows, Into kInto>
TK_INLINE void Tile(int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step,
                    float* c, int64_t c_row, const float* alpha) {
  Vector sum[kTileRows][2] = {};
  for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_step) {
    const Vector left = LoadVector(b), right = LoadVector(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const Vector one = Broadcast(a[r * a_row]);
      sum[r][0] += one * left;
      sum[r][1] += one * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r, c += c_row) {
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
template <int kTileRows, Into kInto>
TK_INLINE void LastTile(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b,
                        int64_t b_step, float* c, int64_t c_row, const float* alpha) {
  if constexpr (kTileRows > 0) {
    if (rows == kTileRows) {
      Tile<kTileRows, kInto>(depth, a, a_row, a_step, b, b_step, c, c_row, alpha);
    } else {
      LastTile<kTileRows - 1, kInto>(rows, depth, a, a_row, a_step, b, b_step, c, c_row, alpha);
    }
  }
}

// A matrix that is read element by element: element (r, k) lies at data[r * row + k * step].
struct Elements {
  const float* data;
  int64_t row, step;
};

// C (`c_row` floats from row to row) and B (`b_step` floats from step to step) have `panels` * kPanel columns.
template <Into kInto>
void Product(int64_t rows, int64_t panels, int64_t depth, Elements a, const float* b, int64_t b_step, float* c,
             int64_t c_row, const float* alpha = nullptr) {
  for (int64_t panel = 0; panel < panels; ++panel, b += kPanel, c += kPanel) {
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      Tile<kRows, kInto>(depth, a.data + r * a.row, a.row, a.step, b, b_step, c + r * c_row, c_row, alpha);
    }
    LastTile<kRows - 1, kInto>(rows - r, depth, a.data + r * a.row, a.row, a.step, b, b_step, c + r * c_row, c_row,
                               alpha);
  }
}
