// The Euclidean norm of all elements of several tensors together, on the CPU:
//
//   norm = sqrt(sum over all tensors of the sum of x^2)
//
// and the sum alone, for whoever adds up lists of several dtypes.
//
// The floor is memory traffic: every element is read once, 4 or 2 bytes. Squares are added up in float32 over blocks
// and the blocks' sums in float64. The blocks are cut by the tensors' sizes alone and added in their order, so the
// result does not depend on the number of threads. The sum is rounded to float32 before the root, so that it overflows
// to infinity where a computation in float32 does: whoever skips steps of infinite norm skips the same ones.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"
#include "tftoolkit/tensor_list.h"

namespace {

constexpr int64_t kElementsPerTask = 1 << 17;  // some 10 µs
constexpr int64_t kBlock = 1 << 12;

template <typename T>
TK_INLINE float Squares(const T* x, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += tftoolkit::Load(x[i]) * tftoolkit::Load(x[i]);
  return sum;
}

// Run-time dispatch needs functions, not templates.
TK_SIMD float BlockSquares(const float* x, int64_t n) { return Squares(x, n); }
TK_SIMD float BlockSquares(const tftoolkit::BFloat16* x, int64_t n) { return Squares(x, n); }
TK_SIMD float BlockSquares(const tftoolkit::Half* x, int64_t n) { return Squares(x, n); }

template <typename T>
double Sum(ffi::ThreadPool& pool, const ffi::RemainingArgs& tensors) {
  std::vector<const T*> data;
  data.reserve(tensors.size());
  tftoolkit::TensorList list(tensors.size(), kElementsPerTask);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ffi::AnyBuffer tensor = *tensors.get<ffi::AnyBuffer>(i);
    data.push_back(tftoolkit::Data<T>(tensor));
    list.Add(static_cast<int64_t>(tensor.element_count()));
  }
  std::vector<double> sums(list.tasks());
  tftoolkit::ParallelFor(pool, list.tasks(), [&](int64_t task) {
    double sum = 0;
    list.ForEachPiece(task, [&](size_t i, int64_t begin, int64_t n) {
      for (int64_t done = 0; done < n; done += kBlock) {
        sum += BlockSquares(data[i] + begin + done, std::min(kBlock, n - done));
      }
    });
    sums[task] = sum;
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

ffi::Error SumOfSquares(ffi::ThreadPool pool, ffi::RemainingArgs tensors, ffi::ResultBuffer<ffi::F32> sum) {
  const ffi::DataType type = tensors.get<ffi::AnyBuffer>(0)->element_type();
  return tftoolkit::WithFloatType("SumOfSquares", type, [&](auto value) {
    *sum->typed_data() = static_cast<float>(Sum<decltype(value)>(pool, tensors));
    return ffi::Error::Success();
  });
}

ffi::Error GlobalNorm(ffi::ThreadPool pool, ffi::RemainingArgs tensors, ffi::ResultBuffer<ffi::F32> norm) {
  const ffi::DataType type = tensors.get<ffi::AnyBuffer>(0)->element_type();
  return tftoolkit::WithFloatType("GlobalNorm", type, [&](auto value) {
    *norm->typed_data() = std::sqrt(static_cast<float>(Sum<decltype(value)>(pool, tensors)));
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(GlobalNormCpu, GlobalNorm,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER(SumOfSquaresCpu, SumOfSquares,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::Buffer<ffi::F32>>());

TK_OP(GlobalNorm, "<T: f32 | bf16 | f16>(*tensors: T[...]) -> (norm: f32[])");
TK_OP(SumOfSquares, "<T: f32 | bf16 | f16>(*tensors: T[...]) -> (sum: f32[])");
TK_KERNEL(GlobalNorm, CPU, GlobalNormCpu);
TK_KERNEL(SumOfSquares, CPU, SumOfSquaresCpu);
