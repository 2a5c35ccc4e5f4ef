// What cuda_fp16.h and cuda_bf16.h have in common. Each operation computes in float32 and rounds once.

#ifndef TFTOOLKIT_EMULATION_SMALL_FLOATS_H_
#define TFTOOLKIT_EMULATION_SMALL_FLOATS_H_

#include <cmath>
#include <cstdint>

#include "tftoolkit/emulation/vector_types.h"

namespace tftoolkit::emulation {

// Rounded to nearest, ties to even.
float FromHalf(uint16_t bits);
uint16_t ToHalf(float value);
float FromBFloat16(uint16_t bits);
uint16_t ToBFloat16(float value);

}  // namespace tftoolkit::emulation

// Arithmetic and comparisons come by way of float. A pair is read and written at once, so it must be aligned.
#define TK_SMALL_FLOAT(Scalar, Pair)                                                   \
  struct alignas(2 * sizeof(Scalar)) Pair {                                            \
    Scalar x, y;                                                                       \
    Pair() = default;                                                                  \
    Pair(Scalar x, Scalar y) : x(x), y(y) {}                                           \
    Pair(const Pair& other) { *this = other; }                                         \
    Pair& operator=(const Pair& other) {                                               \
      ::tftoolkit::emulation::CheckAligned(&other, alignof(Pair));                     \
      ::tftoolkit::emulation::CheckAligned(this, alignof(Pair));                       \
      x = other.x, y = other.y;                                                        \
      return *this;                                                                    \
    }                                                                                  \
  };                                                                                   \
  inline Scalar __hadd(Scalar a, Scalar b) { return float(a) + float(b); }             \
  inline Scalar __hsub(Scalar a, Scalar b) { return float(a) - float(b); }             \
  inline Scalar __hmul(Scalar a, Scalar b) { return float(a) * float(b); }             \
  inline Scalar __hfma(Scalar a, Scalar b, Scalar c) { return fmaf(a, b, c); }         \
  inline Scalar __hmax(Scalar a, Scalar b) { return fmaxf(a, b); }                     \
  inline Scalar __hmin(Scalar a, Scalar b) { return fminf(a, b); }                     \
  inline float __low2float(Pair a) { return a.x; }                                     \
  inline float __high2float(Pair a) { return a.y; }                                    \
  inline Pair __hadd2(Pair a, Pair b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; } \
  inline Pair __hsub2(Pair a, Pair b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; } \
  inline Pair __hmul2(Pair a, Pair b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; } \
  inline Pair __hfma2(Pair a, Pair b, Pair c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

#endif  // TFTOOLKIT_EMULATION_SMALL_FLOATS_H_
