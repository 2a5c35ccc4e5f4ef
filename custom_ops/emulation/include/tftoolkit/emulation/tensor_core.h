// tftoolkit/tensor_core.h in emulation.

#ifndef TFTOOLKIT_EMULATION_TENSOR_CORE_H_
#define TFTOOLKIT_EMULATION_TENSOR_CORE_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "tftoolkit/emulation/device.h"

namespace tftoolkit {
namespace emulation {

enum class Format { kBFloat16, kHalf };
struct Fragments {
  uint32_t a[4];
  uint32_t b[2];
  float c[4];
};
void MultiplyFragments(Format format, Fragments* fragments, Place place);
void LoadMatrices(uint32_t* registers, const void* row, bool transposed, Place place);
void CopyAsync(void* shared, const void* global, size_t size);
void CommitCopies();
void WaitForCopies(int left);

}  // namespace emulation

template <typename T>
void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], TK_CALLED_AT) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>, "bfloat16 or half");
  const auto format = std::is_same_v<T, __half> ? emulation::Format::kHalf : emulation::Format::kBFloat16;
  emulation::Fragments fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  emulation::MultiplyFragments(format, &fragments, {file, line});
  for (int i = 0; i < 4; ++i) c[i] = fragments.c[i];
}

inline void LoadMatrix(uint32_t (&registers)[4], const void* row, TK_CALLED_AT) {
  emulation::LoadMatrices(registers, row, false, {file, line});
}

inline void LoadMatrixTransposed(uint32_t (&registers)[4], const void* row, TK_CALLED_AT) {
  emulation::LoadMatrices(registers, row, true, {file, line});
}

__attribute__((always_inline)) inline void CopyAsync16(void* shared, const void* global) {
  emulation::CopyAsync(shared, global, 16);
}

inline void CommitCopies() { emulation::CommitCopies(); }

template <int kLeft>
void WaitForCopies() {
  emulation::WaitForCopies(kLeft);
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_EMULATION_TENSOR_CORE_H_
