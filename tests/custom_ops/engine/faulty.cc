// Ops that misbehave on purpose, and one that shows every kind of attribute; for test_host.py.

#include <atomic>
#include <new>
#include <stdexcept>
#include <string_view>

#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"

static ffi::Error Refuse(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32>) {
  return ffi::Error(ffi::ErrorCode::kOutOfRange, "there are " + std::to_string(x.element_count()) + " elements");
}
XLA_FFI_DEFINE_HANDLER(RefuseCpu, Refuse, ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
TK_OP(Refuse, "(x: f32[...]) -> (y: f32[...])");
TK_KERNEL(Refuse, CPU, RefuseCpu);

static ffi::Error Throw(ffi::Buffer<ffi::F32>, ffi::ResultBuffer<ffi::F32>) {
  throw std::runtime_error("thrown on purpose");
}
XLA_FFI_DEFINE_HANDLER(ThrowCpu, Throw, ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
TK_OP(Throw, "(x: f32[...]) -> (y: f32[...])");
TK_KERNEL(Throw, CPU, ThrowCpu);

// The handler wants an attribute that the schema does not have.
static ffi::Error Mismatch(ffi::Buffer<ffi::F32>, ffi::ResultBuffer<ffi::F32>, float) { return ffi::Error::Success(); }
XLA_FFI_DEFINE_HANDLER(MismatchCpu, Mismatch,
                       ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>().Attr<float>("alpha"));
TK_OP(Mismatch, "(x: f32[...], *, beta: f32 = 1.0) -> (y: f32[...])");
TK_KERNEL(Mismatch, CPU, MismatchCpu);

// Writes its attributes out: [f32, f64 difference from one, i32, i64 difference from 2^40, bool, bytes of the string].
static ffi::Error Attributes(ffi::Buffer<ffi::F32>, ffi::ResultBuffer<ffi::F32> y, float f32, double f64, int32_t i32,
                             int64_t i64, bool flag, std::string_view text) {
  float* out = y->typed_data();
  out[0] = f32;
  out[1] = static_cast<float>((f64 - 1.0) * 1e15);
  out[2] = static_cast<float>(i32);
  out[3] = static_cast<float>(i64 - (int64_t{1} << 40));
  out[4] = flag ? 1.0f : 0.0f;
  float sum = 0;
  for (unsigned char c : text) sum = sum * 2 + c;
  out[5] = sum;
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(AttributesCpu, Attributes,
                       ffi::Ffi::Bind()
                           .Arg<ffi::Buffer<ffi::F32>>()
                           .Ret<ffi::Buffer<ffi::F32>>()
                           .Attr<float>("single")
                           .Attr<double>("double_precision")
                           .Attr<int32_t>("count")
                           .Attr<int64_t>("big")
                           .Attr<bool>("flag")
                           .Attr<std::string_view>("text"));
TK_OP(Attributes,
      "(x: f32[3 n], *, single: f32, double_precision: f64 = 1.000000000000007, count: i32 = -7, big: i64 = "
      "1099511627781,"
      " flag: bool = true, text: str = 'a\"\\\\b') -> (y: f32[6])");
TK_KERNEL(Attributes, CPU, AttributesCpu);

// Runs on the pool from inside the pool: every task starts tasks of its own.
static ffi::Error Nested(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {
  std::atomic<int64_t> count{0};
  tftoolkit::ParallelFor(pool, 16,
                         [&](int64_t) { tftoolkit::ParallelFor(pool, 16, [&](int64_t) { count.fetch_add(1); }); });
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = static_cast<float>(count.load());
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(
    NestedCpu, Nested,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
TK_OP(Nested, "(x: f32[...]) -> (y: f32[...])");
TK_KERNEL(Nested, CPU, NestedCpu);

// Throws in a loop on the pool: a task alone, the first, the last, all of them, one of a loop in a loop; or not at all.
static void Blow(std::string_view what) {
  if (what == "number") throw 42;
  if (what == "memory") throw std::bad_alloc();
  throw std::out_of_range("thrown in a task");
}
static ffi::Error ThrowInTask(ffi::ThreadPool pool, ffi::Buffer<ffi::F32>, ffi::ResultBuffer<ffi::F32> y,
                              std::string_view what, std::string_view where) {
  std::atomic<int64_t> count{0};
  const auto loop = [&](int64_t tasks, bool inner) {
    tftoolkit::ParallelFor(pool, tasks, [&](int64_t i) {
      if (where == "all" || (where == "first" && i == 0) || (where == "last" && i == tasks - 1)) Blow(what);
      if (inner && i == 5) tftoolkit::ParallelFor(pool, 8, [&](int64_t j) { j == 3 ? Blow(what) : void(); });
      count.fetch_add(1);
    });
  };
  loop(where == "one" ? 1 : 64, where == "nested");
  y->typed_data()[0] = static_cast<float>(count.load());
  if (where == "one") Blow(what);
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(ThrowInTaskCpu, ThrowInTask,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::Buffer<ffi::F32>>()
                           .Ret<ffi::Buffer<ffi::F32>>()
                           .Attr<std::string_view>("what")
                           .Attr<std::string_view>("where"));
TK_OP(ThrowInTask, "(x: f32[], *, where: str, what: str = 'text') -> (y: f32[])");
TK_KERNEL(ThrowInTask, CPU, ThrowInTaskCpu);

// No kernel at all.
TK_OP(Nowhere, "(x: f32[...]) -> (y: f32[...])");
