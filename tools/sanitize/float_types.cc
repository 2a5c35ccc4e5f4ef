// Compares tftoolkit/float_types.h with the compiler's own half and with arithmetic in double; see driver.cc.

#include "tftoolkit/float_types.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace {

using tftoolkit::BFloat16;
using tftoolkit::BitsFloat;
using tftoolkit::FloatBits;
using tftoolkit::Half;
using tftoolkit::Load;
using tftoolkit::Store;

template <typename T>
bool IsNan(T value) {
  return std::isnan(Load(value));
}

void Expect(bool right, const char* what, uint32_t bits, uint32_t found) {
  if (right) return;
  std::fprintf(stderr, "%s of 0x%x is 0x%x\n", what, bits, found);
  std::exit(1);
}

float HalfValue(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<float>(value);
}

uint16_t NearestHalf(float value) {
  const _Float16 rounded = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
}

// By its definition: of the two neighbours the nearer one, or, in the middle, the even one. Beyond the largest finite
// bfloat16 comes 2^128, whose bits are infinity's.
uint16_t NearestBFloat16(float value) {
  const uint32_t bits = FloatBits(value);
  const uint16_t below = bits >> 16;
  if (std::isinf(value)) return below;
  const uint16_t above = below + 1;
  const auto magnitude = [](uint16_t half) {
    return (half & 0x7fff) == 0x7f80 ? std::ldexp(1.0, 128)
                                     : static_cast<double>(BitsFloat(static_cast<uint32_t>(half & 0x7fff) << 16));
  };
  const double middle = (magnitude(below) + magnitude(above)) / 2, size = std::fabs(static_cast<double>(value));
  if (size == middle) return below % 2 == 0 ? below : above;
  return size < middle ? below : above;
}

void CheckStoreHalf(uint32_t bits) {
  const float value = BitsFloat(bits);
  const Half half = Store<Half>(value);
  const bool right =
      std::isnan(value) ? IsNan(half) && (half.bits >> 15) == (bits >> 31) : half.bits == NearestHalf(value);
  Expect(right, "the half", bits, half.bits);
}

void CheckStoreBFloat16(uint32_t bits) {
  const float value = BitsFloat(bits);
  const BFloat16 bfloat16 = Store<BFloat16>(value);
  const bool right = std::isnan(value) ? IsNan(bfloat16) && (bfloat16.bits >> 15) == (bits >> 31)
                                       : bfloat16.bits == NearestBFloat16(value);
  Expect(right, "the bfloat16", bits, bfloat16.bits);
}

// Everything around the ties of a number's upper half: for a bfloat16 in the middle of the lower 16 bits, for a half of
// the lower 13; where halves are subnormal their ties have more bits.
constexpr std::initializer_list<uint32_t> kLowBits = {0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff};

void CheckHalves() {
  for (uint32_t bits = 0; bits < 1u << 16; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    const float value = Load(half), expected = HalfValue(half.bits);
    const bool right = std::isnan(expected) ? std::isnan(value) : FloatBits(value) == FloatBits(expected);
    Expect(right, "the float of the half", bits, FloatBits(value));
    CheckStoreHalf(FloatBits(value));
    for (uint32_t low : kLowBits) CheckStoreHalf(bits << 16 | low);
  }
}

void CheckBFloat16s() {
  for (uint32_t bits = 0; bits < 1u << 16; ++bits) {
    const float value = Load(BFloat16{static_cast<uint16_t>(bits)});
    Expect(FloatBits(value) == bits << 16, "the float of the bfloat16", bits, FloatBits(value));
    CheckStoreBFloat16(FloatBits(value));
    for (uint32_t low : kLowBits) CheckStoreBFloat16(bits << 16 | low);
  }
}

}  // namespace

void CheckFloatTypes(uint64_t stride) {
  CheckHalves();
  CheckBFloat16s();
  uint64_t count = 0;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += stride, ++count) {
    CheckStoreHalf(static_cast<uint32_t>(bits));
    CheckStoreBFloat16(static_cast<uint32_t>(bits));
  }
#ifdef __SSE__
  _mm_setcsr(_mm_getcsr() | 0x8040);  // TensorFlow and XLA flush subnormal floats to zero; halves must survive it
  CheckHalves();
#endif
  std::printf("float_types.h: %llu floats\n", static_cast<unsigned long long>(count));
}
