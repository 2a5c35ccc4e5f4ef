// From tensors of any float type to the matrices in float32 that gemm.h multiplies, and back; once for each instruction
// set (see gemm.h).

// `rows` rows of a tensor, the first at element `place` and the next ones `stride` elements on, as float32, `to_stride`
// floats apart: rows that are a multiple of many kB apart would all be mapped to few lines of the cache.
inline void Pack(tftoolkit::FloatType type, const void* from, int64_t place, int64_t stride, int64_t rows,
                 int64_t depth, float* to, int64_t to_stride) {
  tftoolkit::WithType(type, [&](auto zero) {
    const auto* row = static_cast<const decltype(zero)*>(from) + place;
    for (int64_t r = 0; r < rows; ++r, row += stride, to += to_stride) {
#pragma omp simd
      for (int64_t i = 0; i < depth; ++i) to[i] = tftoolkit::Load(row[i]);
    }
  });
}

// The row at element `place` into its lane of panels [depth][step].
inline void PackLane(tftoolkit::FloatType type, const void* from, int64_t place, int64_t depth, float scale, float* to,
                     int64_t step) {
  tftoolkit::WithType(type, [&](auto zero) {
    const auto* row = static_cast<const decltype(zero)*>(from) + place;
    for (int64_t i = 0; i < depth; ++i) to[i * step] = tftoolkit::Load(row[i]) * scale;
  });
}

// Every `step`-th of the floats, times `scale`, to the row at element `place`.
inline void StoreRow(tftoolkit::FloatType type, const float* from, int64_t step, int64_t depth, float scale, void* to,
                     int64_t place) {
  tftoolkit::WithType(type, [&](auto zero) {
    auto* row = static_cast<decltype(zero)*>(to) + place;
    for (int64_t i = 0; i < depth; ++i) row[i] = tftoolkit::Store<decltype(zero)>(from[i * step] * scale);
  });
}
