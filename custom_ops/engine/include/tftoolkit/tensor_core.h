// Tensor cores (sm_80 and newer), their loads from shared memory, and copies to it that run by themselves.
//
// Under nvcc each function is one instruction of PTX; in emulation it is plain code with the same layout of fragments,
// which also checks that all lanes take part and that copies are waited for. All 32 lanes of a warp call Mma and
// LoadMatrix together.
//
// C = A B + C with A [16, 16], B [16, 8], C [16, 8]. With group = lane / 4 and pair = 2 * (lane % 4), a lane holds
//
//   a[0]  A[group, pair], A[group, pair + 1]         b[0]  B[pair, group], B[pair + 1, group]
//   a[1]  A[group + 8, pair], …                      b[1]  B[pair + 8, group], …
//   a[2]  A[group, pair + 8], …                      c[0], c[1]  C[group, pair], C[group, pair + 1]
//   a[3]  A[group + 8, pair + 8], …                  c[2], c[3]  C[group + 8, pair], …
//
// (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"); the first of two lies in the lower 16 bits.

#ifndef TFTOOLKIT_TENSOR_CORE_H_
#define TFTOOLKIT_TENSOR_CORE_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#ifdef TK_EMULATED
#include "tftoolkit/emulation/tensor_core.h"
#else

namespace tftoolkit {

// c += a b, for T = __nv_bfloat16 or __half, in float32.
template <typename T>
__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>, "bfloat16 or half");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Four matrices of 8 x 8 16-bit numbers from shared memory: lanes 8 i to 8 i + 7 give the addresses of matrix i's rows
// (16 bytes each, aligned to 16), and registers[i] gets its row lane / 4, columns 2 * (lane % 4) and the next.
__device__ __forceinline__ void LoadMatrix(uint32_t (&registers)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix transposed: registers[i] gets column lane / 4, rows 2 * (lane % 4) and the next.
__device__ __forceinline__ void LoadMatrixTransposed(uint32_t (&registers)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// Starts to copy 16 bytes from global to shared memory, both aligned to 16. They are there for this thread after
// WaitForCopies, for others after the barrier that follows it.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

// The copies that this thread started since the last call are a group.
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kLeft` of this thread's groups, the newest ones, are under way.
template <int kLeft>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace tftoolkit

#endif  // TK_EMULATED

#endif  // TFTOOLKIT_TENSOR_CORE_H_
