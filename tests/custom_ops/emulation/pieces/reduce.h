// A device function in a header, with a shared array, which emulation must rewrite, too.

#ifndef PIECES_REDUCE_H_
#define PIECES_REDUCE_H_

#include <cuda_runtime.h>

// The sum over a block of kThreads threads, in all of them.
template <int kThreads>
__device__ __noinline__ float BlockSum(float value) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
    __syncthreads();
  }
  return values[0];
}

#endif  // PIECES_REDUCE_H_
