// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 128 random bits as a pure function
// of a 128-bit counter and a 64-bit key. Branch-free and inlined, so that loops over counters vectorise; CUDA kernels
// have the same bits.

#ifndef TFTOOLKIT_PHILOX_H_
#define TFTOOLKIT_PHILOX_H_

#include <cstdint>

#include "tftoolkit/float_types.h"

namespace tftoolkit {

struct PhiloxWords {
  uint32_t a, b, c, d;
};

constexpr uint32_t kFactorA = 0xD2511F53u, kFactorC = 0xCD9E8D57u;

template <int kRounds = 10>
TK_INLINE PhiloxWords Philox(PhiloxWords x, uint32_t key_0, uint32_t key_1) {
  if constexpr (kRounds == 0) {
    return x;
  } else {
    // Halves of products as 32-bit numbers: with 64-bit ones, vectors would be taken apart and put together every time.
    const uint32_t high_a = static_cast<uint32_t>((uint64_t{x.a} * kFactorA) >> 32), low_a = x.a * kFactorA;
    const uint32_t high_c = static_cast<uint32_t>((uint64_t{x.c} * kFactorC) >> 32), low_c = x.c * kFactorC;
    const PhiloxWords next{high_c ^ x.b ^ key_0, low_c, high_a ^ x.d ^ key_1, low_a};
    return Philox<kRounds - 1>(next, key_0 + 0x9E3779B9u, key_1 + 0xBB67AE85u);
  }
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_PHILOX_H_
