// What gemm.h multiplies, from tensors and from tiles of floats, for both kinds of elements: floats from any float
// type, pairs from bfloat16; once for each instruction set (see gemm.h, packing.h).

// `rows` rows of a tensor, the first at element `place` and the next ones `stride` elements on, as rows of A,
// `to_stride` elements apart: their columns are the depth.
inline void PackRows(tftoolkit::FloatType type, const void* from, int64_t place, int64_t stride, int64_t rows,
                     int64_t depth, float* to, int64_t to_stride) {
  Pack(type, from, place, stride, rows, depth, to, to_stride);
}

inline void PackRows(tftoolkit::FloatType, const void* from, int64_t place, int64_t stride, int64_t rows, int64_t depth,
                     Pair* to, int64_t to_stride) {
  const auto* row = static_cast<const tftoolkit::BFloat16*>(from) + place;
  for (int64_t r = 0; r < rows; ++r, row += stride, to += to_stride) {
    if (depth % 2 != 0) to[depth / 2].bits = 0;
    std::memcpy(to, row, depth * sizeof *row);
  }
}

// Rows at the elements place(0), place(1) ... of a tensor as rows of B: they are the depth.
template <typename Place>
void PackSteps(tftoolkit::FloatType type, const void* from, const Place& place, int64_t rows, int64_t columns,
               float* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r) Pack(type, from, place(r), 0, 1, columns, to + r * to_stride, to_stride);
}

template <typename Place>
void PackSteps(tftoolkit::FloatType, const void* from, const Place& place, int64_t rows, int64_t columns, Pair* to,
               int64_t to_stride) {
  const auto* data = static_cast<const tftoolkit::BFloat16*>(from);
  for (int64_t r = 0; r < rows; r += 2, to += to_stride) {
    const tftoolkit::BFloat16* first = data + place(r);
    if (r + 1 == rows) {
      for (int64_t i = 0; i < columns; ++i) to[i].bits = first[i].bits;
      continue;
    }
    const tftoolkit::BFloat16* second = data + place(r + 1);
    for (int64_t i = 0; i < columns; ++i) to[i].bits = first[i].bits | static_cast<uint32_t>(second[i].bits) << 16;
  }
}

// The row at element `place` into its lane of panels [depth][step], as it is: only floats can be scaled without loss.
inline void PackLane(tftoolkit::FloatType, const void* from, int64_t place, int64_t depth, float /*scale*/, Pair* to,
                     int64_t step) {
  const auto* row = static_cast<const tftoolkit::BFloat16*>(from) + place;
  for (int64_t i = 0; i < depth / 2; ++i) std::memcpy(to + i * step, row + 2 * i, sizeof *to);
  if (depth % 2 != 0) to[depth / 2 * step].bits = row[depth - 1].bits;
}

// Rounded to bfloat16 (to nearest, ties to even; NaN stays NaN), in the upper half.
TK_INLINE BitsVector UpperHalf(Vector value) {
  const BitsVector bits = reinterpret_cast<BitsVector>(value);
  return value == value ? bits + 0x7fffu + (bits >> 16 & 1u) : 0x7fc00000u - BitsVector{};
}
TK_INLINE BitsVector ToPairs(Vector first, Vector second) {
  return UpperHalf(first) >> 16 | (UpperHalf(second) & 0xffff0000u);
}

// A tile of floats, `step` floats from row to row, as a matrix whose rows are the depth; pairs are written to `room`,
// `step` from row to row, which may be the tile itself.
template <typename Element>
const Element* AsSteps(float* tile, int64_t rows, int64_t columns, int64_t step, [[maybe_unused]] float* room) {
  if constexpr (std::is_same_v<Element, float>) {
    return tile;
  } else {
    auto* to = reinterpret_cast<Pair*>(room);
    for (int64_t r = 0; r < rows; r += 2) {
      for (int64_t lane = 0; lane < columns; lane += kLanes) {
        const float* at = tile + r * step + lane;
        const Vector second = r + 1 < rows ? LoadVector(at + step) : Vector{};
        StoreVector(to + r / 2 * step + lane, ToPairs(LoadVector(at), second));
      }
    }
    return to;
  }
}

// The same as a matrix whose columns, whole panels, are the depth; pairs take the place of their floats.
template <typename Element>
const Element* AsRows(float* tile, int64_t rows, int64_t columns, int64_t step) {
  if constexpr (!std::is_same_v<Element, float>) {
    IntVector even = {};
    for (int lane = 0; lane < kLanes; ++lane) even[lane] = 2 * lane;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t lane = 0; lane < columns; lane += kPanel) {
        const float* at = tile + r * step + lane;
        const Vector left = LoadVector(at), right = LoadVector(at + kLanes);
        StoreVector(reinterpret_cast<Pair*>(tile + r * step + lane / 2),
                    ToPairs(__builtin_shuffle(left, right, even), __builtin_shuffle(left, right, even + 1)));
      }
    }
  }
  return reinterpret_cast<const Element*>(tile);
}
