// C = A B on tensor cores, in tiles of 64 x 64: two stages of copies that run by themselves, fragments by ldmatrix.
// `bug` plants one mistake; 0 is right. Lines that findings must name carry a mark (an @ and a word).

#include <cuda_runtime.h>

#include "tftoolkit/op.h"
#include "tftoolkit/tensor_core.h"

namespace {

enum Bug { kNone, kNoWait, kWaitTooLittle, kNoBarrierBeforeRefill, kMultiplyUnderCondition, kMisalignedRows };

constexpr int kTile = 64;      // rows and columns of C for each block
constexpr int kDepth = 32;     // of A and B at a time
constexpr int kThreads = 128;  // four warps, each with 32 x 32 of C
constexpr int kChunk = 8;      // numbers in 16 bytes

// Rows are 16 bytes longer than their content, so that eight of them lie in different banks.
template <typename T, int kBug>
struct Stage {
  static constexpr int kPad = kBug == kMisalignedRows ? 4 : kChunk;
  T a[kTile][kDepth + kPad];
  T b[kDepth][kTile + kChunk];
};

template <typename T, int kBug>
__device__ void StartCopies(const T* a, const T* b, int k, int n, int depth, Stage<T, kBug>* stage) {
  for (int i = threadIdx.x; i < kTile * kDepth / kChunk; i += kThreads) {
    const int row = i / (kDepth / kChunk), column = i % (kDepth / kChunk) * kChunk;
    tftoolkit::CopyAsync16(&stage->a[row][column], a + row * k + depth + column);  // @copy
  }
  for (int i = threadIdx.x; i < kTile * kDepth / kChunk; i += kThreads) {
    const int row = i / (kTile / kChunk), column = i % (kTile / kChunk) * kChunk;
    tftoolkit::CopyAsync16(&stage->b[row][column], b + (depth + row) * n + column);
  }
  tftoolkit::CommitCopies();
}

// A [m, k], B [k, n], C [m, n]; m and n are multiples of 64, k of 32.
template <typename T, int kBug>
__global__ void __launch_bounds__(kThreads) Product(const T* a, const T* b, float* c, int k, int n) {
  __shared__ alignas(16) Stage<T, kBug> stages[2];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp / 2 * 32, column = warp % 2 * 32;  // of the warp's part in the tile
  a += static_cast<int64_t>(blockIdx.y) * kTile * k;
  b += blockIdx.x * kTile;
  float sums[2][4][4] = {};
  StartCopies(a, b, k, n, 0, &stages[0]);
  for (int depth = 0; depth < k; depth += kDepth) {
    const Stage<T, kBug>& stage = stages[depth / kDepth % 2];
    if (depth + kDepth < k) {
      StartCopies(a, b, k, n, depth + kDepth, &stages[(depth / kDepth + 1) % 2]);
      if (kBug != kNoWait) tftoolkit::WaitForCopies<kBug == kWaitTooLittle ? 2 : 1>();
    } else {
      tftoolkit::WaitForCopies<0>();
    }
    __syncthreads();
    for (int inner = 0; inner < kDepth; inner += 16) {
      uint32_t left[2][4], right[2][4];
      for (int i = 0; i < 2; ++i) {
        tftoolkit::LoadMatrix(left[i], &stage.a[row + 16 * i + lane % 16][inner + lane / 16 * 8]);  // @left
        const int below = inner + lane / 8 % 2 * 8 + lane % 8;
        tftoolkit::LoadMatrixTransposed(right[i], &stage.b[below][column + 16 * i + lane / 16 * 8]);
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          const uint32_t pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          if (kBug == kMultiplyUnderCondition && lane == 31) continue;
          tftoolkit::Mma<T>(sums[i][j], left[i], pair);  // @multiply
        }
      }
    }
    if (kBug != kNoBarrierBeforeRefill) __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int which = 0; which < 4; ++which) {
        const int64_t y = blockIdx.y * kTile + row + 16 * i + lane / 4 + which / 2 * 8;
        c[y * n + blockIdx.x * kTile + column + 8 * j + lane % 4 * 2 + which % 2] = sums[i][j][which];
      }
    }
  }
}

struct Call {
  cudaStream_t stream;
  ffi::AnyBuffer a, b;
  float* c;
};

template <typename T, int kBug>
void Launch(const Call& call) {
  const int m = static_cast<int>(call.a.dimensions()[0]), k = static_cast<int>(call.a.dimensions()[1]);
  const int n = static_cast<int>(call.b.dimensions()[1]);
  Product<T, kBug><<<dim3(n / kTile, m / kTile), kThreads, 0, call.stream>>>(
      static_cast<const T*>(call.a.untyped_data()), static_cast<const T*>(call.b.untyped_data()), call.c, k, n);
}

template <typename T>
constexpr void (*kLaunches[])(const Call&) = {
    Launch<T, kNone>,
#ifdef TK_EMULATED  // nvcc compiles the right one alone
    Launch<T, kNoWait>,
    Launch<T, kWaitTooLittle>,
    Launch<T, kNoBarrierBeforeRefill>,
    Launch<T, kMultiplyUnderCondition>,
    Launch<T, kMisalignedRows>,
#endif
};

ffi::Error Multiply(cudaStream_t stream, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::ResultBuffer<ffi::F32> c,
                    int64_t bug) {
  const Call call{stream, a, b, c->typed_data()};
  const bool fits = a.dimensions()[0] % kTile == 0 && a.dimensions()[1] % kDepth == 0 && b.dimensions()[1] % kTile == 0;
  if (!fits) return ffi::Error::InvalidArgument("Multiply takes multiples of 64, 32 and 64 for m, k and n");
  (a.element_type() == ffi::BF16 ? kLaunches<__nv_bfloat16> : kLaunches<__half>)[bug](call);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? ffi::Error::Success() : ffi::Error::Internal(cudaGetErrorString(error));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(MultiplyCuda, Multiply,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::Buffer<ffi::F32>>()
                           .Attr<int64_t>("bug"));

TK_OP(Multiply, "<T: bf16 | f16> (a: T[m k], b: T[k n], *, bug: i64 = 0) -> (c: f32[m n])");
TK_KERNEL(Multiply, CUDA, MultiplyCuda);
