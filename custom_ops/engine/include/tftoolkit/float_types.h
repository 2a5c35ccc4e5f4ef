// bfloat16 and IEEE half as storage types: kernels load them into float, compute, and round once when they store.
//
// The conversions are branch-free integer arithmetic, so that compilers vectorise loops over them for every
// instruction set; they need no F16C or AVX512-BF16. On a GPU they are one instruction each.

#ifndef TFTOOLKIT_FLOAT_TYPES_H_
#define TFTOOLKIT_FLOAT_TYPES_H_

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define TK_HOST_DEVICE __host__ __device__
#else
#define TK_HOST_DEVICE
#endif

namespace tftoolkit {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

#define TK_INLINE TK_HOST_DEVICE inline __attribute__((always_inline))
#define TK_INLINE_LAMBDA __attribute__((always_inline))  // behind a lambda's parameters

TK_INLINE uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

TK_INLINE float BitsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

TK_INLINE float Load(float value) { return value; }

TK_INLINE float Load(BFloat16 value) { return BitsFloat(static_cast<uint32_t>(value.bits) << 16); }

// The exponent of a half sits 112 below that of a float. A subnormal half counts steps of 2^-24, as the lowest bits of
// a float in [0.5, 1) do. No float on the way is subnormal: hosts may run kernels with those flushed to zero.
TK_INLINE float Load(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t subnormal = FloatBits(BitsFloat(0x3f000000u + magnitude) - 0.5f);
  const uint32_t normal =
      (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);  // infinity and NaN too
  return BitsFloat(sign | (magnitude < 0x400u ? subnormal : normal));
#endif
}

template <typename T>
TK_HOST_DEVICE T Store(float value);

template <>
TK_INLINE float Store<float>(float value) {
  return value;
}

// Round to nearest, ties to even; NaN becomes the quiet NaN of the same sign.
template <>
TK_INLINE BFloat16 Store<BFloat16>(float value) {
#ifdef __CUDA_ARCH__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const uint32_t bits = FloatBits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = ((bits >> 16) & 0x8000u) | 0x7fc0u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
#endif
}

// Round to nearest, ties to even, with gradual underflow: adding 2^(e+13) to a subnormal result lets the float adder
// round at the right bit.
template <>
TK_INLINE Half Store<Half>(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = FloatBits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = FloatBits(BitsFloat(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return {static_cast<uint16_t>(sign | (magnitude >= 0x477ff000u ? special : finite))};
#endif
}

// Whole blocks, for loops of 16-bit numbers that compute much: a conversion that stands alone takes full vectors, one
// amid arithmetic on wider numbers costs GCC half as much again as the arithmetic.
template <typename T>
TK_INLINE void LoadBlock(const T* from, float* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = Load(from[i]);
}

template <typename T>
TK_INLINE void StoreBlock(const float* from, T* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = Store<T>(from[i]);
}

// A dtype that is no template parameter: of blocked kernels, which compute in float32, only reading and storing depend
// on it.
enum class FloatType { kFloat, kBFloat16, kHalf };

// run(T{}) with the C++ type of a dtype.
template <typename Run>
TK_INLINE auto WithType(FloatType type, const Run& run) {
  switch (type) {
    case FloatType::kBFloat16:
      return run(BFloat16{});
    case FloatType::kHalf:
      return run(Half{});
    default:
      return run(float{});
  }
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_FLOAT_TYPES_H_
