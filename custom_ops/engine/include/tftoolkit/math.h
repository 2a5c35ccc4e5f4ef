// Elementary functions for vector loops and for CUDA kernels: branch-free, inlined, without tables, so that compilers
// vectorise what calls them (`#pragma omp simd`). Errors are the largest found, in units in the last place (ulp) of the
// result, compiled with and without fused multiply-add; tests/custom_ops/engine/test_math.py measures them. NaN comes
// out as NaN.
//
// Polynomials for exp, log, sin and cos: Moshier's Cephes library, https://www.netlib.org/cephes/.

#ifndef TFTOOLKIT_MATH_H_
#define TFTOOLKIT_MATH_H_

#include <cstdint>
#include <cstring>

#include "tftoolkit/float_types.h"

namespace tftoolkit {

// e^(x + low) for x from -105 to 89, and a |low| of at most 0.11 that x has no room for. At most 2 ulp; below -87.3,
// where the result is subnormal, it may be flushed to 0.
TK_INLINE float ExpWithin(float x, float low = 0) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float shifted = (x + low) * 1.44269504f + kRound;
  const float k = shifted - kRound;
  // The first part of ln 2 has 9 bits, so that its product with k is exact.
  const float r = ((x - k * 0.693359375f) + k * 2.12194440e-4f) + low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r * r + r) + 1.0f;
  // 2^k in two steps, since k goes beyond the exponents of floats on both sides.
  const int32_t whole = static_cast<int32_t>(FloatBits(shifted) - FloatBits(kRound));
  const int32_t half = whole >> 1;
  const float first = BitsFloat(static_cast<uint32_t>(half + 127) << 23);
  const float second = BitsFloat(static_cast<uint32_t>(whole - half + 127) << 23);
  return p * first * second;
}

// e^x for any x: beyond the range of ExpWithin it is infinity and 0.
TK_INLINE float Exp(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);  // as exact, and a third of the instructions: GPUs have one for 2^x
#else
  return ExpWithin(x > 89.0f ? 89.0f : x < -105.0f ? -105.0f : x);
#endif
}

// e^x in double, at most 2 ulp; 0 below -708, where the result would be subnormal, infinity above 709.
TK_INLINE double WideExp(double given) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52, as in Exp
  const double below = given > 709.7 ? 709.7 : given, x = below < -708.0 ? -708.0 : below;
  const double shifted = x * 1.4426950408889634074 + kRound;
  const double k = shifted - kRound;
  const double r = (x - k * 6.93145751953125e-1) - k * 1.42860682030941723212e-6;
  const double square = r * r;
  const double p =
      r * ((1.26177193074810590878e-4 * square + 3.02994407707441961300e-2) * square + 9.99999999999999999910e-1);
  const double q =
      ((3.00198505138664455042e-6 * square + 2.52448340349684104192e-3) * square + 2.27265548208155028766e-1) * square +
      2.0;
  const double power = 1.0 + 2.0 * (p / (q - p));
  uint64_t whole, bits;
  std::memcpy(&whole, &shifted, sizeof whole);
  std::memcpy(&bits, &power, sizeof bits);
  bits += whole << 52;
  double result;
  std::memcpy(&result, &bits, sizeof result);
  constexpr double kInfinity = __builtin_huge_val();
  const double large = given > 709.7 ? kInfinity : result, all = given < -708.0 ? 0.0 : large;
  return given == given ? all : given;
}

// The natural logarithm in double, of 0 (minus infinity), normal numbers and infinity; of others NaN. At most 2 ulp,
// and 2^-53 near 1.
TK_INLINE double WideLog(double x) {
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdu, kWhole = 0x4330000000000000u;
  constexpr double kInfinity = __builtin_huge_val();
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // x = 2^k * m, m from sqrt(1/2) to sqrt(2); k + 2047 as the low bits of a double.
  const uint64_t above = bits - kRootHalf + (uint64_t{2047} << 52);
  const uint64_t exponent = kWhole | (above >> 52), low = (above & 0xfffffffffffffu) + kRootHalf;
  double k, m;
  std::memcpy(&k, &exponent, sizeof k);
  std::memcpy(&m, &low, sizeof m);
  k -= 4503599627370496.0 + 2047.0;
  const double s = (m - 1.0) / (m + 1.0);  // log m = 2 (s + s^3 / 3 + s^5 / 5 + ...)
  const double square = s * s;
  double p = 1.0 / 23;
  p = p * square + 1.0 / 21;
  p = p * square + 1.0 / 19;
  p = p * square + 1.0 / 17;
  p = p * square + 1.0 / 15;
  p = p * square + 1.0 / 13;
  p = p * square + 1.0 / 11;
  p = p * square + 1.0 / 9;
  p = p * square + 1.0 / 7;
  p = p * square + 1.0 / 5;
  p = p * square + 1.0 / 3;
  const double result =
      k * 6.93147180369123816490e-1 + (2.0 * s + (2.0 * s * square * p + k * 1.90821492927058770002e-10));
  const double positive = x < kInfinity ? result : x;
  const double other = x == 0.0 ? -kInfinity : __builtin_nan("");
  return x > 0.0 ? positive : other;
}

// e^-x for x >= 0: at most 2 ulp; 0 from 87.7 on, where the result would be subnormal; of NaN, 0. Half the instructions
// of Exp: 2^k is made in one step, and the limit is one of bits, since of one in floats GCC makes a branch for
// constants.
TK_INLINE float ExpOfMinus(float x) {
#ifdef __CUDA_ARCH__
  return expf(-x);
#else
  constexpr uint32_t kLimit = 0x42b00000u;  // 88
  const uint32_t bits = FloatBits(x);
  const float limited = BitsFloat(bits < kLimit ? bits : kLimit);
  constexpr float kRound = 12582912.0f;  // as in ExpWithin, and r and p as there
  const float shifted = kRound - limited * 1.44269504f;
  const float k = shifted - kRound;
  const float r = k * 2.12194440e-4f - (k * 0.693359375f + limited);
  // Pairs first: a shorter chain of sums that wait for each other.
  const float square = r * r;
  float p = (1.9875691500e-4f * r + 1.3981999507e-3f) * square + (8.3334519073e-3f * r + 4.1665795894e-2f);
  p = p * square + (1.6666665459e-1f * r + 5.0000001201e-1f);
  p = (p * square + r) + 1.0f;
  return p * BitsFloat((FloatBits(shifted) << 23) + FloatBits(1.0f));  // of k = -127 the bits are those of 0
#endif
}

struct LogisticPair {
  float value, rest;
};

// 1 / (1 + e^-x), and what it lacks to 1. At most 3 ulp each, 0 from 87.7 on; of NaN anything finite.
TK_INLINE LogisticPair Logistic(float x) {
  const float e = ExpOfMinus(BitsFloat(FloatBits(x) & 0x7fffffffu));
  const float large = 1.0f / (1.0f + e), small = e * large;
  return {x < 0.0f ? small : large, x < 0.0f ? large : small};
}

struct Normal {
  float below, density;
};

// The standard normal distribution: the probability below x, which is (1 + erf(x / sqrt 2)) / 2, and the density at x.
// At most 8 ulp each, on both sides: the left tail is not a difference of larger numbers.
TK_INLINE Normal StandardNormal(float x) {
  const float magnitude = BitsFloat(FloatBits(x) & 0x7fffffffu);
  const float t = magnitude > 14.4f ? 14.4f : magnitude;  // from here on everything is 0; NaN stays
  // The square of 12 bits is exact.
  const float high = BitsFloat(FloatBits(t) & 0xfffff000u);
  const float bell = ExpWithin(-0.5f * high * high, -0.5f * (t - high) * (t + high));
  // Mills' ratio times 1 + t, a polynomial in (t - 3.5) / (t + 3.5), fitted to a relative error of 2e-8 on [0, 15].
  const float inverse = 1.0f / ((1.0f + t) * (t + 3.5f));
  const float q = (t - 3.5f) * (1.0f + t) * inverse;
  float p = 1.5017225e-4f;
  p = p * q + 1.0038771e-4f;
  p = p * q - 1.387782e-3f;
  p = p * q + 2.9042902e-4f;
  p = p * q + 1.0370541e-2f;
  p = p * q - 3.0262228e-2f;
  p = p * q + 3.804877e-2f;
  p = p * q + 7.873033e-4f;
  p = p * q - 9.771261e-2f;
  p = p * q + 4.7855318e-1f;
  const float tail = bell * (p * (t + 3.5f) * inverse);
  return {x > 0.0f ? 1.0f - tail : tail, bell * 0.398942280f};
}

struct SineCosine {
  float sine, cosine;
};

// Both, of an angle in radians. The angle is reduced in float64: up to 2^20 the error is below 1.2e-7, up to 2^31 below
// 1e-6 (float64 itself leaves 2.4e-7 of an angle of that size).
TK_INLINE SineCosine SinCos(double angle) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52, as in Exp
  const double shifted = angle * 0.63661977236758134308 + kRound;
  const double k = shifted - kRound;
  // pi / 2 in two parts; the first has 33 bits.
  const float r = static_cast<float>((angle - k * 1.57079632673412561417) - k * 6.07710050650619224932e-11);
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const uint32_t quarter = static_cast<uint32_t>(bits);
  const float z = r * r;
  const float sine = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
  const float cosine =
      (((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z) + 1.0f;
  const bool swap = quarter & 1;
  const uint32_t sine_sign = (quarter & 2) << 30, cosine_sign = ((quarter + 1) & 2) << 30;
  return {BitsFloat(FloatBits(swap ? cosine : sine) ^ sine_sign),
          BitsFloat(FloatBits(swap ? sine : cosine) ^ cosine_sign)};
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_MATH_H_
