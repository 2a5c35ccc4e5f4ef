// AdamW of the rows of a table that a step used, and the sums of rows that belong to one place, on the CPU.
//
// SumRows: of the rows with one index the first becomes their sum, the others become zeros:
//
//   y_j = sum of x_k over all k with i_k = i_j, if no k < j has i_k = i_j; else 0
//
// AdamWRows: every row of w, m and v that an index names moves once, as adamw/adamw.cc has it, by the sum of the
// gradients with that index; all other rows keep every bit.
//
// The floor is memory traffic. Of n different rows of d floats w, m and v are read and written and the gradient is
// read, 28 n d bytes: 140 MB for 79,000 rows of 64, which lie anywhere in tables that no cache holds. So the ids are
// sorted, by two counting passes for a table of a million rows, and rows are visited in their order: neighbours are on
// one page, and what the processor must look up of the page tables is read line by line. Rows are asked for some rows
// ahead. In TensorFlow's operations the same update gathers three arrays of n d numbers, computes a dozen more and
// scatters three. SumRows works in place, so that where few ids repeat it touches little more than the ids.
//
// Rows of one index are added in the order given, one after the other, and tasks hold whole runs of equal indices, so
// the result does not depend on the number of threads. (An index that most rows have is therefore one thread's work.)

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "runs.h"
#include "tftoolkit/adam_rule.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/op.h"
#include "tftoolkit/prefetch.h"
#include "tftoolkit/simd.h"

namespace {

using adamw_rows::Place;
using adamw_rows::Runs;
using tftoolkit::AdamRule;
using tftoolkit::Data;
using F32 = ffi::Buffer<ffi::F32>;

constexpr int64_t kElementsPerTask = 1 << 14;  // some 40 µs
constexpr int64_t kAhead = 8;                  // rows; each is one of w, of m, of v and of the gradients

int64_t RowsPerTask(int64_t depth) { return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, depth)); }

// The elements of a row, which is what all dimensions but the first hold.
int64_t Depth(const F32& rows) {
  int64_t depth = 1;
  for (size_t i = 1; i < rows.dimensions().size(); ++i) depth *= rows.dimensions()[i];
  return depth;
}

struct Table {
  float *w, *m, *v;
  int64_t depth;
};

TK_SIMD void AddTo(float* sum, const float* row, int64_t depth) {
#pragma omp simd
  for (int64_t i = 0; i < depth; ++i) sum[i] += row[i];
}

TK_SIMD void MoveRows(Table table, const float* gradients, Runs::Range range, float rate, float decay, AdamRule rule) {
  const int64_t depth = table.depth, bytes = depth * static_cast<int64_t>(sizeof(float));
  std::vector<float> sum(depth);
  while (!range.empty()) {
    if (range.size() > kAhead) {
      const int64_t next = range.id(kAhead) * depth;
      tftoolkit::Prefetch<true>(table.w + next, bytes);
      tftoolkit::Prefetch<true>(table.m + next, bytes);
      tftoolkit::Prefetch<true>(table.v + next, bytes);
      tftoolkit::Prefetch(gradients + range.place(kAhead) * depth, bytes);
    }
    const Runs::Run run = range.Next();
    const float* gradient = gradients + run.begin->place * depth;
    if (run.repeats()) {
      std::copy_n(gradient, depth, sum.data());
      for (const Place* one = run.begin + 1; one != run.end; ++one) {
        AddTo(sum.data(), gradients + one->place * depth, depth);
      }
      gradient = sum.data();
    }
    const int64_t at = run.id * depth;
    tftoolkit::MoveByAdam<false>(table.w + at, table.m + at, table.v + at, nullptr, gradient, depth, rate, decay, rule);
  }
}

ffi::Error SumRows(ffi::ThreadPool pool, F32 rows, ffi::AnyBuffer indices, ffi::Result<F32> sums) {
  const int64_t count = static_cast<int64_t>(indices.element_count()), depth = Depth(rows);
  float* const data = sums->typed_data();  // holds the rows already
  return tftoolkit::WithIntegerType("SumRows", indices.element_type(), [&](auto id) {
    const Runs runs(Data<decltype(id)>(indices), count);
    runs.Parallel(pool, RowsPerTask(depth), [&](Runs::Range range) {
      while (!range.empty()) {
        const Runs::Run run = range.Next();
        for (const Place* one = run.begin + 1; one != run.end; ++one) {
          float* const row = data + one->place * depth;
          AddTo(data + run.begin->place * depth, row, depth);
          std::fill_n(row, depth, 0.0f);
        }
      }
    });
    return ffi::Error::Success();
  });
}

template <typename Id>
ffi::Error CheckIndices(const Id* ids, int64_t count, int64_t rows) {
  const Id* const bad = std::find_if(ids, ids + count, [&](Id id) { return id < 0 || id >= rows; });
  if (bad == ids + count) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("indices holds " + std::to_string(*bad) + " (element " +
                                     std::to_string(bad - ids) + "), but must hold rows of w, from 0 to below " +
                                     std::to_string(rows));
}

// The outputs are w, m and v, in place.
ffi::Error AdamWRows(ffi::ThreadPool pool, F32 w, F32, F32, ffi::AnyBuffer indices, F32 gradients,
                     ffi::Buffer<ffi::PRED> apply, F32 rate, F32 t, ffi::Result<F32> new_w, ffi::Result<F32> new_m,
                     ffi::Result<F32> new_v, double beta_1, double beta_2, float epsilon, float weight_decay) {
  const int64_t count = static_cast<int64_t>(indices.element_count());
  return tftoolkit::WithIntegerType("AdamWRows", indices.element_type(), [&](auto id) {
    const auto* const ids = Data<decltype(id)>(indices);
    if (auto error = CheckIndices(ids, count, w.dimensions()[0]); error.failure()) return error;
    if (!*apply.typed_data()) return ffi::Error::Success();
    const Table table{new_w->typed_data(), new_m->typed_data(), new_v->typed_data(), Depth(w)};
    const AdamRule rule(beta_1, beta_2, *t.typed_data(), epsilon);
    const Runs runs(ids, count);
    runs.Parallel(pool, RowsPerTask(table.depth), [&](const Runs::Range& range) {
      MoveRows(table, gradients.typed_data(), range, *rate.typed_data(), weight_decay, rule);
    });
    return ffi::Error::Success();
  });
}

}  // namespace

#define TK_F32 .Arg<F32>()
#define TK_OUT .Ret<F32>()

XLA_FFI_DEFINE_HANDLER(SumRowsCpu, SumRows,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() TK_F32.Arg<ffi::AnyBuffer>() TK_OUT);
XLA_FFI_DEFINE_HANDLER(AdamWRowsCpu, AdamWRows,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>() TK_F32 TK_F32 TK_F32.Arg<ffi::AnyBuffer>()
                               TK_F32.Arg<ffi::Buffer<ffi::PRED>>()
                                   TK_F32 TK_F32 TK_OUT TK_OUT TK_OUT.Attr<double>("beta_1")
                           .Attr<double>("beta_2")
                           .Attr<float>("epsilon")
                           .Attr<float>("weight_decay"));

TK_OP(SumRows, "<I: i32 | i64>(rows: f32[n ...], indices: I[n]) -> (sums: f32[n ...] = rows)");
TK_OP(AdamWRows,
      "<I: i32 | i64>"
      "(w: f32[rows ...], m: f32[rows ...], v: f32[rows ...], indices: I[n], gradients: f32[n ...], apply: bool[],"
      " rate: f32[], t: f32[], *, beta_1: f64, beta_2: f64, epsilon: f32, weight_decay: f32)"
      " -> (new_w: f32[rows ...] = w, new_m: f32[rows ...] = m, new_v: f32[rows ...] = v)");
TK_KERNEL(SumRows, CPU, SumRowsCpu);
TK_KERNEL(AdamWRows, CPU, AdamWRowsCpu);
