// Stands in for CUDA's cuda_bf16.h: bfloat16, its pairs, and what kernels do with them.

#ifndef TFTOOLKIT_EMULATION_CUDA_BF16_H_
#define TFTOOLKIT_EMULATION_CUDA_BF16_H_

#include "cuda_runtime.h"
#include "tftoolkit/emulation/small_floats.h"

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : bits(::tftoolkit::emulation::ToBFloat16(value)) {}
  operator float() const { return ::tftoolkit::emulation::FromBFloat16(bits); }
};
using nv_bfloat16 = __nv_bfloat16;

TK_SMALL_FLOAT(__nv_bfloat16, __nv_bfloat162)
using nv_bfloat162 = __nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {pair.x, pair.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 pair) { return {pair.x, pair.y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float value) { return {value, value}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 value) { return {value, value}; }

#endif  // TFTOOLKIT_EMULATION_CUDA_BF16_H_
