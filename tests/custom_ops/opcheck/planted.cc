// Ops with one planted bug each, and a right one; for test_opcheck.py. Bugs of gradients that are formulas in Python
// stand there.

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <limits>

#include "tftoolkit/op.h"
#include "tftoolkit/parallel.h"

namespace {

using F32 = ffi::Buffer<ffi::F32>;
using F32Result = ffi::ResultBuffer<ffi::F32>;

template <typename T>
const T* In(const ffi::AnyBuffer& buffer) {
  return static_cast<const T*>(buffer.untyped_data());
}

template <typename T>
T* Out(ffi::AnyBuffer& buffer) {
  return static_cast<T*>(buffer.untyped_data());
}

// Right: y = alpha x gamma.
template <typename T>
ffi::Error RunScale(const ffi::AnyBuffer& x, const ffi::AnyBuffer& gamma, ffi::AnyBuffer& y, float alpha) {
  const int64_t d = x.dimensions().back();
  for (size_t i = 0; i < x.element_count(); ++i) {
    Out<T>(y)[i] = static_cast<T>(alpha) * In<T>(x)[i] * In<T>(gamma)[i % d];
  }
  return ffi::Error::Success();
}

ffi::Error Scale(ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::Result<ffi::AnyBuffer> y, float alpha) {
  return x.element_type() == ffi::F32 ? RunScale<float>(x, gamma, *y, alpha) : RunScale<double>(x, gamma, *y, alpha);
}
XLA_FFI_DEFINE_HANDLER(
    ScaleCpu, Scale,
    ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Attr<float>("alpha"));

// dx of Scale, which forgets alpha in float32.
ffi::Error OneDtypeBack(ffi::AnyBuffer dy, ffi::AnyBuffer gamma, ffi::Result<ffi::AnyBuffer> dx, float alpha) {
  return dy.element_type() == ffi::F32 ? RunScale<float>(dy, gamma, *dx, 1.0f)
                                       : RunScale<double>(dy, gamma, *dx, alpha);
}
XLA_FFI_DEFINE_HANDLER(
    OneDtypeBackCpu, OneDtypeBack,
    ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Attr<float>("alpha"));

// dx of Scale, with a short cut for an output gradient that was broadcast from one value, recognised too easily.
ffi::Error ShortcutBack(ffi::AnyBuffer dy, ffi::AnyBuffer gamma, ffi::Result<ffi::AnyBuffer> dx, float alpha) {
  if (dy.element_type() != ffi::F32) return RunScale<double>(dy, gamma, *dx, alpha);
  const int64_t d = dy.dimensions().back();
  const float* data = In<float>(dy);
  const bool broadcast = dy.element_count() > 1 && data[0] == data[1];
  for (size_t i = 0; i < dy.element_count(); ++i) {
    Out<float>(*dx)[i] = alpha * (broadcast ? data[0] : data[i]) * In<float>(gamma)[i % d];
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(
    ShortcutBackCpu, ShortcutBack,
    ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Attr<float>("alpha"));

// y = x, in whole vectors of eight.
ffi::Error Unwritten(F32 x, F32Result y) {
  const size_t whole = x.element_count() / 8 * 8;
  std::copy_n(x.typed_data(), whole, y->typed_data());
  return ffi::Error::Success();
}

// The largest element of each row, in vectors of four, the last of which may reach past the row.
ffi::Error ReadsPast(F32 x, F32Result y) {
  const int64_t d = x.dimensions().back(), rows = static_cast<int64_t>(y->element_count());
  for (int64_t r = 0; r < rows; ++r) {
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < (d + 3) / 4 * 4; ++i) largest = std::max(largest, x.typed_data()[r * d + i]);
    y->typed_data()[r] = largest;
  }
  return ffi::Error::Success();
}

// y = x, in whole vectors of four, the last of which may reach past the end.
ffi::Error WritesPast(F32 x, F32Result y) {
  const size_t n = x.element_count();
  for (size_t i = 0; i < (n + 3) / 4 * 4; ++i) y->typed_data()[i] = i < n ? x.typed_data()[i] : 0.0f;
  return ffi::Error::Success();
}

// The sum of each row: tasks add to it without a lock.
ffi::Error Race(ffi::ThreadPool pool, F32 x, F32Result y) {
  const int64_t d = x.dimensions().back(), rows = static_cast<int64_t>(y->element_count());
  std::fill_n(y->typed_data(), rows, 0.0f);
  tftoolkit::ParallelFor(pool, rows * d, [&](int64_t i) {
    volatile float* sum = y->typed_data() + i / d;
    const float before = *sum;
    if (i % 16 == 0) sched_yield();
    *sum = before + x.typed_data()[i];
  });
  return ffi::Error::Success();
}

// alpha x + beta, but where the host is XLA the attributes change places.
thread_local bool in_xla = false;
ffi::Error XlaOnly(F32 x, F32Result y, float alpha, float beta) {
  if (in_xla) std::swap(alpha, beta);
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = alpha * x.typed_data()[i] + beta;
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(XlaOnlyInner, XlaOnly,
                       ffi::Ffi::Bind().Arg<F32>().Ret<F32>().Attr<float>("alpha").Attr<float>("beta"));
XLA_FFI_Error* XlaOnlyCpu(XLA_FFI_CallFrame* frame) {
  if (frame->ctx != nullptr) {  // a service that TensorFlow kernels do not have
    XLA_FFI_DeviceMemory_Allocate_Args memory{};
    memory.struct_size = XLA_FFI_DeviceMemory_Allocate_Args_STRUCT_SIZE;
    memory.ctx = frame->ctx;
    memory.size = memory.alignment = 64;
    XLA_FFI_Error* error = frame->api->XLA_FFI_DeviceMemory_Allocate(&memory);
    in_xla = error != nullptr;
    if (error != nullptr) {
      XLA_FFI_Error_Destroy_Args destroy{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
      frame->api->XLA_FFI_Error_Destroy(&destroy);
    }
  }
  return XlaOnlyInner(frame);
}

// max(x, 0), where a comparison with NaN is false.
ffi::Error SwallowsNan(F32 x, F32Result y) {
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] > 0 ? x.typed_data()[i] : 0.0f;
  return ffi::Error::Success();
}

// The mean of each row; how many rows there are is counted by a division by d.
ffi::Error CrashesOnEmpty(F32 x, F32Result y) {
  const int64_t d = x.dimensions().back(), rows = static_cast<int64_t>(x.element_count()) / d;
  for (int64_t r = 0; r < rows; ++r) {
    float sum = 0;
    for (int64_t i = 0; i < d; ++i) sum += x.typed_data()[r * d + i];
    y->typed_data()[r] = sum / static_cast<float>(d);
  }
  return ffi::Error::Success();
}

// x, but it never comes back from more than 16 elements.
ffi::Error Hangs(F32 x, F32Result y) {
  std::copy_n(x.typed_data(), x.element_count(), y->typed_data());
  while (x.element_count() > 16) sched_yield();
  return ffi::Error::Success();
}

// x less the mean of everything: not a function of single rows, as `...` promises.
ffi::Error Centre(F32 x, F32Result y) {
  double sum = 0;
  for (size_t i = 0; i < x.element_count(); ++i) sum += x.typed_data()[i];
  const auto mean = static_cast<float>(sum / static_cast<double>(std::max<size_t>(1, x.element_count())));
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] - mean;
  return ffi::Error::Success();
}

// offset + x, where Python has to set the offset first.
float offset = 0;
ffi::Error Stateful(F32 x, F32Result y) {
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] + offset;
  return ffi::Error::Success();
}

// Another result in every call, as its schema says.
std::atomic<int> calls{0};
ffi::Error Counts(F32 x, F32Result y) {
  const float now = static_cast<float>(++calls);
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] + now;
  return ffi::Error::Success();
}

// x^2 and its gradient 2 x dy, both right.
ffi::Error Square(F32 x, F32Result y) {
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] * x.typed_data()[i];
  return ffi::Error::Success();
}
ffi::Error SquareBack(F32 dy, F32 x, F32Result dx) {
  for (size_t i = 0; i < x.element_count(); ++i) dx->typed_data()[i] = 2 * x.typed_data()[i] * dy.typed_data()[i];
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(SquareBackCpu, SquareBack, ffi::Ffi::Bind().Arg<F32>().Arg<F32>().Ret<F32>());

XLA_FFI_DEFINE_HANDLER(RaceCpu, Race, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32>().Ret<F32>());

}  // namespace

extern "C" TK_EXPORT void set_offset(float value) { offset = value; }

#define SCALE(name)                                                                                        \
  TK_OP(name, "<T: f32 | f64>(x: T[... d], gamma: T[d], *, alpha: f32 = 1.5) -> (y: T[... d]) batchable"); \
  TK_KERNEL(name, CPU, ScaleCpu)
SCALE(Right);
SCALE(Refusing);
SCALE(WrongGradient);
SCALE(RowsOnly);
SCALE(Sparse);
SCALE(Shortcut);
SCALE(OneDtype);
SCALE(NoGradient);
SCALE(NoReference);
SCALE(WrongValue);
TK_OP(OneDtypeBack, "<T: f32 | f64>(dy: T[... d], gamma: T[d], *, alpha: f32) -> (dx: T[... d])");
TK_KERNEL(OneDtypeBack, CPU, OneDtypeBackCpu);
TK_OP(ShortcutBack, "<T: f32 | f64>(dy: T[... d], gamma: T[d], *, alpha: f32) -> (dx: T[... d])");
TK_KERNEL(ShortcutBack, CPU, ShortcutBackCpu);

#define UNARY(name, schema)                                                        \
  XLA_FFI_DEFINE_HANDLER(name##Cpu, name, ffi::Ffi::Bind().Arg<F32>().Ret<F32>()); \
  TK_OP(name, schema);                                                             \
  TK_KERNEL(name, CPU, name##Cpu)
UNARY(Unwritten, "(x: f32[n]) -> (y: f32[n])");
UNARY(ReadsPast, "(x: f32[... d]) -> (y: f32[...])");
UNARY(WritesPast, "(x: f32[n]) -> (y: f32[n])");
UNARY(SwallowsNan, "(x: f32[...]) -> (y: f32[...])");
UNARY(CrashesOnEmpty, "(x: f32[... d]) -> (y: f32[...])");
UNARY(Hangs, "(x: f32[n]) -> (y: f32[n])");
UNARY(Centre, "(x: f32[... d]) -> (y: f32[... d]) batchable");
UNARY(Stateful, "(x: f32[n]) -> (y: f32[n])");
UNARY(Counts, "(x: f32[n]) -> (y: f32[n]) stateful");
TK_OP(CentreAll, "(x: f32[... d]) -> (y: f32[... d])");
TK_KERNEL(CentreAll, CPU, CentreCpu);
UNARY(Square, "(x: f32[n]) -> (y: f32[n])");
TK_OP(SquareBack, "(dy: f32[n], x: f32[n]) -> (dx: f32[n])");
TK_KERNEL(SquareBack, CPU, SquareBackCpu);
TK_OP(Race, "(x: f32[... d]) -> (y: f32[...])");
TK_KERNEL(Race, CPU, RaceCpu);
TK_OP(XlaOnly, "(x: f32[n], *, alpha: f32 = 2.0, beta: f32 = 0.5) -> (y: f32[n])");
TK_KERNEL(XlaOnly, CPU, XlaOnlyCpu);
// The differences of neighbours are one fewer than the schema says.
TK_OP(WrongShape, "(x: f32[n]) -> (y: f32[n])");
TK_KERNEL(WrongShape, CPU, SquareCpu);
