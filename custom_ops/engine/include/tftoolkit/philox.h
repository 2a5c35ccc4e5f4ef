// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 128 random bits as a pure function
// of a 128-bit counter and a 64-bit key. Branch-free and inlined, so that loops over counters vectorise.

#ifndef TFTOOLKIT_PHILOX_H_
#define TFTOOLKIT_PHILOX_H_

#include <cstdint>

#include "tftoolkit/float_types.h"

namespace tftoolkit {

struct PhiloxWords {
  uint32_t a, b, c, d;
};

template <int kRounds = 10>
TK_INLINE PhiloxWords Philox(PhiloxWords x, uint32_t key_0, uint32_t key_1) {
  if constexpr (kRounds == 0) {
    return x;
  } else {
    const uint64_t p = uint64_t{0xD2511F53u} * x.a, q = uint64_t{0xCD9E8D57u} * x.c;
    const PhiloxWords next{static_cast<uint32_t>(q >> 32) ^ x.b ^ key_0, static_cast<uint32_t>(q),
                           static_cast<uint32_t>(p >> 32) ^ x.d ^ key_1, static_cast<uint32_t>(p)};
    return Philox<kRounds - 1>(next, key_0 + 0x9E3779B9u, key_1 + 0xBB67AE85u);
  }
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_PHILOX_H_
