// The softmax of rows of logits, in float32 from any float type: once for each instruction set, behind gemm.h,
// packing.h and vector_math.h.

constexpr int64_t kSoftmaxBlock = 2048;  // 8 kB of float32, read twice from the first cache

// The sum of e^(x - shift), where shift is the largest x, or 0 if that is not finite.
struct RowSum {
  float shift, sum;
};

// A block of a row as floats that can be read to the end of the last vector: in place, or copied and filled up.
struct FloatBlock {
  alignas(64) float copy[kSoftmaxBlock];
  const float* data;

  FloatBlock(tftoolkit::FloatType type, const void* from, int64_t place, int64_t n, float filler) {
    data = static_cast<const float*>(from) + place;
    if (type == tftoolkit::FloatType::kFloat && n % kLanes == 0) return;
    Pack(type, from, place, 0, 1, n, copy, 0);
    for (int64_t i = n; i % kLanes != 0; ++i) copy[i] = filler;
    data = copy;
  }
};

inline float LargestOf(Vector x) {
  float largest = x[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = x[lane] > largest ? x[lane] : largest;
  return largest;
}

inline float SumOf(Vector x) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += x[lane];
  return sum;
}

// Of a block: a NaN may get lost in the maximum, the sum keeps it. Two of each side by side: each has to wait for the
// one before.
inline RowSum BlockSum(const float* x, int64_t n) {
  Vector top = Broadcast(kMinusInfinity), other_top = top, sum = {}, other = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Vector left = LoadVector(x + i), right = LoadVector(x + i + kLanes);
    top = left > top ? left : top;
    other_top = right > other_top ? right : other_top;
  }
  for (; i < n; i += kLanes) top = LoadVector(x + i) > top ? LoadVector(x + i) : top;
  const float largest = LargestOf(top > other_top ? top : other_top);
  if (largest == -kMinusInfinity) return {0, largest};
  const float shift = largest == kMinusInfinity ? 0 : largest;
  for (i = 0; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sum += Exp2((LoadVector(x + i) - shift) * kLog2E);
    other += Exp2((LoadVector(x + i + kLanes) - shift) * kLog2E);
  }
  for (; i < n; i += kLanes) sum += Exp2((LoadVector(x + i) - shift) * kLog2E);
  return {shift, SumOf(sum + other)};
}

// The largest element; a NaN may get lost.
inline float LargestOfRow(tftoolkit::FloatType type, const void* from, int64_t place, int64_t n) {
  Vector top = Broadcast(kMinusInfinity);
  for (int64_t begin = 0; begin < n; begin += kSoftmaxBlock) {
    const int64_t count = std::min(kSoftmaxBlock, n - begin);
    const FloatBlock block(type, from, place + begin, count, kMinusInfinity);
    for (int64_t i = 0; i < count; i += kLanes) {
      const Vector x = LoadVector(block.data + i);
      top = x > top ? x : top;
    }
  }
  return LargestOf(top);
}

// The row of `n` elements that begins at `place`; blocks are joined in double.
inline RowSum SumRow(tftoolkit::FloatType type, const void* from, int64_t place, int64_t n) {
  tftoolkit::SoftmaxPart<double, int64_t> row{};
  for (int64_t begin = 0; begin < n; begin += kSoftmaxBlock) {
    const int64_t count = std::min(kSoftmaxBlock, n - begin);
    const FloatBlock block(type, from, place + begin, count, kMinusInfinity);
    const RowSum sum = BlockSum(block.data, count);
    tftoolkit::Join(row, {sum.shift, sum.sum, 0, 0}, false);
  }
  return {row.shift, static_cast<float>(row.sum)};
}

// to[i] = e^(x[i] - shift) * scale - taken[i] * factor: a softmax' gradient. `taken` can be read to the end of the last
// vector.
inline void StoreSoftmaxGradient(tftoolkit::FloatType type, const void* from, void* to, int64_t place, int64_t n,
                                 float shift, float scale, const float* taken, float factor) {
  alignas(64) float result[kSoftmaxBlock];
  for (int64_t begin = 0; begin < n; begin += kSoftmaxBlock) {
    const int64_t count = std::min(kSoftmaxBlock, n - begin);
    const FloatBlock block(type, from, place + begin, count, 0);
    const bool in_place = type == tftoolkit::FloatType::kFloat && count % kLanes == 0;
    float* stored = in_place ? static_cast<float*>(to) + place + begin : result;
    for (int64_t i = 0; i < count; i += kLanes) {
      const Vector power = Exp2((LoadVector(block.data + i) - shift) * kLog2E);
      StoreVector(stored + i, power * scale - LoadVector(taken + begin + i) * factor);
    }
    if (!in_place) StoreRow(type, result, 1, count, 1.0f, to, place + begin);
  }
}
