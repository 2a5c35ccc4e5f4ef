// The Euclidean norm of all elements of several tensors together, on the CPU:
//
//   norm = sqrt(sum over all tensors of the sum of x^2)
//
// The floor is memory traffic: every element is read once, 4 bytes. Squares are added up in float32 over blocks and the
// blocks' sums in float64. The blocks are cut by the tensors' sizes alone and added in their order, so the result does
// not depend on the number of threads. The sum is rounded to float32 before the root, so that it overflows to infinity
// where a computation in float32 does: whoever skips steps of infinite norm skips the same ones.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"
#include "tftoolkit/tensor_list.h"

namespace {

constexpr int64_t kElementsPerTask = 1 << 17;  // some 10 µs
constexpr int64_t kBlock = 1 << 12;

TK_SIMD float SumOfSquares(const float* x, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

ffi::Error GlobalNorm(ffi::ThreadPool pool, ffi::RemainingArgs tensors, ffi::ResultBuffer<ffi::F32> norm) {
  std::vector<const float*> data;
  data.reserve(tensors.size());
  tftoolkit::TensorList list(tensors.size(), kElementsPerTask);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ffi::AnyBuffer tensor = *tensors.get<ffi::AnyBuffer>(i);  // float32, by the schema
    data.push_back(static_cast<const float*>(tensor.untyped_data()));
    list.Add(static_cast<int64_t>(tensor.element_count()));
  }
  std::vector<double> sums(list.tasks());
  tftoolkit::ParallelFor(pool, list.tasks(), [&](int64_t task) {
    double sum = 0;
    list.ForEachPiece(task, [&](size_t i, int64_t begin, int64_t n) {
      for (int64_t done = 0; done < n; done += kBlock) {
        sum += SumOfSquares(data[i] + begin + done, std::min(kBlock, n - done));
      }
    });
    sums[task] = sum;
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  *norm->typed_data() = std::sqrt(static_cast<float>(total));
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(GlobalNormCpu, GlobalNorm,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::Buffer<ffi::F32>>());

TK_OP(GlobalNorm, "(*tensors: f32[...]) -> (norm: f32[])");
TK_KERNEL(GlobalNorm, CPU, GlobalNormCpu);
