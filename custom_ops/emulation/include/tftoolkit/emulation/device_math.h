// Device functions on numbers that the C++ library lacks, and loads with a cache hint. A GPU's approximate functions
// are computed with the accuracy of the CPU's.

#ifndef TFTOOLKIT_EMULATION_DEVICE_MATH_H_
#define TFTOOLKIT_EMULATION_DEVICE_MATH_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x < 0.0f || x != x ? 0.0f : x > 1.0f ? 1.0f : x; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }

inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>((static_cast<uint64_t>(x) * y) >> 32); }

template <typename To, typename From>
To TkBits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float x) { return TkBits<int>(x); }
inline unsigned __float_as_uint(float x) { return TkBits<unsigned>(x); }
inline float __int_as_float(int x) { return TkBits<float>(x); }
inline float __uint_as_float(unsigned x) { return TkBits<float>(x); }

#define TK_LOAD(Name)        \
  template <typename T>      \
  T Name(const T* address) { \
    return *address;         \
  }
TK_LOAD(__ldg)
TK_LOAD(__ldcg)
TK_LOAD(__ldca)
TK_LOAD(__ldcs)
#undef TK_LOAD

#define TK_STORE(Name)                    \
  template <typename T>                   \
  void Name(T* address, const T& value) { \
    *address = value;                     \
  }
TK_STORE(__stwb)
TK_STORE(__stcg)
TK_STORE(__stcs)
#undef TK_STORE

#endif  // TFTOOLKIT_EMULATION_DEVICE_MATH_H_
