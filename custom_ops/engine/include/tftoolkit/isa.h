// Which of the instruction sets that a kernel was compiled for this processor has.
//
// TK_SIMD (simd.h) does for loops that the compiler vectorises. Kernels that are blocked for the registers of one
// instruction set are compiled once for each instead, from a header without include guard:
//
//   #define TK_LANES 4
//   namespace baseline {
//   #include "tftoolkit/gemm.h"
//   }
//   #undef TK_LANES
//   #ifdef TK_HAS_ISAS
//   #pragma GCC push_options
//   #pragma GCC target("avx2,fma")
//   #define TK_LANES 8
//   namespace avx2 {
//   #include "tftoolkit/gemm.h"
//   }
//   #undef TK_LANES
//   #pragma GCC pop_options
//   ... and TK_LANES 16 for "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma" ...
//   #endif

#ifndef TFTOOLKIT_ISA_H_
#define TFTOOLKIT_ISA_H_

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TK_HAS_ISAS
#endif

namespace tftoolkit {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best one, or where the environment says TFTOOLKIT_ISA=baseline or avx2, no better one than that.
inline Isa BestIsa() {
  static const Isa best = [] {
    Isa found = Isa::kBaseline;
#ifdef TK_HAS_ISAS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = Isa::kAvx2;
    if (found == Isa::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found = Isa::kAvx512;
    }
#endif
    const char* wanted = std::getenv("TFTOOLKIT_ISA");
    const std::string_view limit = wanted == nullptr ? "" : wanted;
    if (limit == "baseline") found = Isa::kBaseline;
    if (limit == "avx2" && found == Isa::kAvx512) found = Isa::kAvx2;
    return found;
  }();
  return best;
}

// Whether AVX-512 multiplies pairs of bfloat16 (gemm.h); not where the environment says TFTOOLKIT_ISA=avx512.
inline bool HasBf16Products() {
  static const bool has = [] {
#ifdef TK_HAS_ISAS
    const char* wanted = std::getenv("TFTOOLKIT_ISA");
    const bool refused = wanted != nullptr && std::string_view(wanted) == "avx512";
    return BestIsa() == Isa::kAvx512 && !refused && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
  }();
  return has;
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_ISA_H_
