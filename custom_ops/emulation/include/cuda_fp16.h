// Stands in for CUDA's cuda_fp16.h: the 16-bit IEEE format, its pairs, and what kernels do with them.

#ifndef TFTOOLKIT_EMULATION_CUDA_FP16_H_
#define TFTOOLKIT_EMULATION_CUDA_FP16_H_

#include "cuda_runtime.h"
#include "tftoolkit/emulation/small_floats.h"

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float value) : bits(::tftoolkit::emulation::ToHalf(value)) {}
  operator float() const { return ::tftoolkit::emulation::FromHalf(bits); }
};
using half = __half;

TK_SMALL_FLOAT(__half, __half2)
using half2 = __half2;

inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline float2 __half22float2(__half2 pair) { return {pair.x, pair.y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 pair) { return {pair.x, pair.y}; }
inline __half2 __float2half2_rn(float value) { return {value, value}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half value) { return {value, value}; }

#endif  // TFTOOLKIT_EMULATION_CUDA_FP16_H_
