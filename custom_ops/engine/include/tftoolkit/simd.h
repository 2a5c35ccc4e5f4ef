// TK_SIMD before a function compiles it for the baseline, AVX2+FMA and AVX-512 machine and picks one by cpuid when the
// library is loaded. Mark the outermost plain function of a hot loop; what it calls must be inlined into it
// (TK_INLINE).

#ifndef TFTOOLKIT_SIMD_H_
#define TFTOOLKIT_SIMD_H_

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Sanitizers: the resolvers run before the sanitizer's own start-up.
#define TK_SIMD __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define TK_SIMD
#endif

#endif  // TFTOOLKIT_SIMD_H_
