// One op for each thing a schema can say; for test_grammar.py.

#include <atomic>
#include <cstring>
#include <string>

#include "tftoolkit/op.h"

using F32 = ffi::Buffer<ffi::F32>;
using F32Result = ffi::ResultBuffer<ffi::F32>;

// Lists: every x times its own weight (a list of scalars' worth of rows) and a common scale.
static ffi::Error Scaled(F32 scale, ffi::RemainingArgs lists, ffi::RemainingRets ys) {
  const size_t n = ys.size();
  for (size_t i = 0; i < n; ++i) {
    auto x = lists.get<F32>(i);
    auto weight = lists.get<F32>(n + i);
    auto y = ys.get<F32>(i);
    if (!x || !weight || !y) return ffi::Error::InvalidArgument("not float32");
    const size_t d = weight->element_count();
    for (size_t j = 0; j < x->element_count(); ++j) {
      (*y)->typed_data()[j] = scale.typed_data()[0] * x->typed_data()[j] * weight->typed_data()[j % d];
    }
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(ScaledCpu, Scaled, ffi::Ffi::Bind().Arg<F32>().RemainingArgs().RemainingRets());
TK_OP(Scaled, "(scale: f32[], *xs: f32[... d], *weights: f32[d]) -> (*ys: f32[... d])");
TK_KERNEL(Scaled, CPU, ScaledCpu);

static ffi::Error Blend(F32 x, F32 y, F32Result z, float t) {
  for (size_t i = 0; i < x.element_count(); ++i) {
    z->typed_data()[i] = x.typed_data()[i] + t * (y.typed_data()[i] - x.typed_data()[i]);
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(BlendCpu, Blend, ffi::Ffi::Bind().Arg<F32>().Arg<F32>().Ret<F32>().Attr<float>("t"));
TK_OP(Blend, "(x: f32[...], y: f32[...], *, t: f32 = 0.5) -> (z: f32[...]) batchable");
TK_KERNEL(Blend, CPU, BlendCpu);

// Output dimensions from names and attributes.
static ffi::Error Pad(F32 x, F32Result y, int64_t left, int32_t) {
  const int64_t n = x.dimensions().back(), m = y->dimensions().back();
  const int64_t rows = m ? static_cast<int64_t>(y->element_count()) / m : 0;
  std::memset(y->typed_data(), 0, y->size_bytes());
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(y->typed_data() + r * m + left, x.typed_data() + r * n, n * sizeof(float));
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(PadCpu, Pad,
                       ffi::Ffi::Bind().Arg<F32>().Ret<F32>().Attr<int64_t>("left").Attr<int32_t>("right"));
TK_OP(Pad, "(x: f32[... n], *, left: i64 = 0, right: i32 = 0) -> (y: f32[... left+n+right])");
TK_KERNEL(Pad, CPU, PadCpu);

static ffi::Error Windows(F32, F32Result, int64_t, int64_t) { return ffi::Error::Success(); }
XLA_FFI_DEFINE_HANDLER(WindowsCpu, Windows,
                       ffi::Ffi::Bind().Arg<F32>().Ret<F32>().Attr<int64_t>("size").Attr<int64_t>("stride"));
TK_OP(Windows, "(x: f32[n], *, size: i64, stride: i64 = 1) -> (y: f32[(n-size)/stride+1 size])");
TK_KERNEL(Windows, CPU, WindowsCpu);

// Optional inputs.
static ffi::Error Affine(F32 x, F32 scale, F32 bias, F32Result y, bool has_scale, bool has_bias) {
  const size_t d = x.dimensions().back();
  for (size_t i = 0; i < x.element_count(); ++i) {
    float value = x.typed_data()[i];
    if (has_scale) value *= scale.typed_data()[i % d];
    if (has_bias) value += bias.typed_data()[i % d];
    y->typed_data()[i] = value;
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(
    AffineCpu, Affine,
    ffi::Ffi::Bind().Arg<F32>().Arg<F32>().Arg<F32>().Ret<F32>().Attr<bool>("has_scale").Attr<bool>("has_bias"));
TK_OP(Affine, "(x: f32[... d], scale?: f32[d], bias?: f32[d]) -> (y: f32[... d]) batchable");
TK_KERNEL(Affine, CPU, AffineCpu);

// In place: finds the input's values in its output.
static ffi::Error Accumulate(F32 sum, F32 x, F32Result y) {
  if (sum.typed_data() != y->typed_data()) return ffi::Error::Internal("the output is not in the input's place");
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] += x.typed_data()[i];
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(AccumulateCpu, Accumulate, ffi::Ffi::Bind().Arg<F32>().Arg<F32>().Ret<F32>());
TK_OP(Accumulate, "(sum: f32[...], x: f32[...]) -> (total: f32[...] = sum) batchable");
TK_KERNEL(Accumulate, CPU, AccumulateCpu);

// Lists of attributes: [sums of the numbers, number of true flags, number of names, characters in them].
static ffi::Error Lists(F32, F32Result y, ffi::Span<const float> floats, ffi::Span<const double> doubles,
                        ffi::Span<const int32_t> ints, ffi::Span<const int64_t> longs, ffi::Span<const int8_t> flags,
                        std::string_view names) {
  float* out = y->typed_data();
  std::fill_n(out, 7, 0.0f);
  for (float value : floats) out[0] += value;
  for (double value : doubles) out[1] += static_cast<float>((value - 1.0) * 1e15);
  for (int32_t value : ints) out[2] += static_cast<float>(value);
  for (int64_t value : longs) out[3] += static_cast<float>(value - (int64_t{1} << 40));
  for (int8_t value : flags) out[4] += value;
  for (char c : names) out[c ? 6 : 5] += 1;
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(ListsCpu, Lists,
                       ffi::Ffi::Bind()
                           .Arg<F32>()
                           .Ret<F32>()
                           .Attr<ffi::Span<const float>>("floats")
                           .Attr<ffi::Span<const double>>("doubles")
                           .Attr<ffi::Span<const int32_t>>("ints")
                           .Attr<ffi::Span<const int64_t>>("longs")
                           .Attr<ffi::Span<const int8_t>>("flags")
                           .Attr<std::string_view>("names"));
TK_OP(
    Lists,
    "(x: f32[], *, floats: f32[] = [0.5, -inf], doubles: f64[] = [1.000000000000007], ints: i32[] = [-3, 4],"
    " longs: i64[] = [1099511627781], flags: bool[] = [true, false, true], names: str[] = ['a', 'bc']) -> (y: f32[7])");
TK_KERNEL(Lists, CPU, ListsCpu);

// Several dtype variables.
template <typename T, typename I>
static ffi::Error Rows(ffi::AnyBuffer table, ffi::AnyBuffer ids, ffi::AnyBuffer y) {
  const int64_t n = table.dimensions()[0], d = table.dimensions()[1];
  const I* id = static_cast<const I*>(ids.untyped_data());
  for (size_t i = 0; i < ids.element_count(); ++i) {
    if (id[i] < 0 || id[i] >= n)
      return ffi::Error::InvalidArgument("id " + std::to_string(id[i]) + " is not in the table");
    std::memcpy(static_cast<T*>(y.untyped_data()) + i * d, static_cast<const T*>(table.untyped_data()) + id[i] * d,
                d * sizeof(T));
  }
  return ffi::Error::Success();
}
static ffi::Error Lookup(ffi::AnyBuffer table, ffi::AnyBuffer ids, ffi::Result<ffi::AnyBuffer> y) {
  if (table.element_type() == ffi::F32) {
    return ids.element_type() == ffi::S32 ? Rows<float, int32_t>(table, ids, *y) : Rows<float, int64_t>(table, ids, *y);
  }
  return ids.element_type() == ffi::S32 ? Rows<double, int32_t>(table, ids, *y) : Rows<double, int64_t>(table, ids, *y);
}
XLA_FFI_DEFINE_HANDLER(LookupCpu, Lookup,
                       ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
TK_OP(Lookup, "<T: f32 | f64, Index: i32 | i64>(table: T[n d], ids: Index[...]) -> (y: T[... d])");
TK_KERNEL(Lookup, CPU, LookupCpu);

// Any rank, but not batchable: the axis is counted from the front.
static ffi::Error Roll(F32 x, F32Result y, int64_t shift, int64_t axis) {
  const auto dims = x.dimensions();
  int64_t inner = 1;
  for (size_t i = axis + 1; i < dims.size(); ++i) inner *= dims[i];
  const int64_t n = dims[axis], total = x.element_count();
  for (int64_t i = 0; i < total; ++i) {
    const int64_t at = i / inner % n;
    y->typed_data()[i + ((at + shift) % n - at) * inner] = x.typed_data()[i];
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(RollCpu, Roll,
                       ffi::Ffi::Bind().Arg<F32>().Ret<F32>().Attr<int64_t>("shift").Attr<int64_t>("axis"));
TK_OP(Roll, "(x: f32[...], *, shift: i64, axis: i64) -> (y: f32[...])");
TK_KERNEL(Roll, CPU, RollCpu);

// Every call counts.
static std::atomic<int64_t> ticks{0};
static ffi::Error Tick(F32 x, F32Result y) {
  const float now = static_cast<float>(++ticks);
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] + now;
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(TickCpu, Tick, ffi::Ffi::Bind().Arg<F32>().Ret<F32>());
TK_OP(Tick, "(x: f32[...]) -> (y: f32[...]) batchable stateful");
TK_KERNEL(Tick, CPU, TickCpu);

// Rows between cumulative lengths, of which there is one more than segments; how many rows, if somebody asks.
static ffi::Error Segments(F32 x, ffi::Buffer<ffi::S32> offsets, F32Result sums, ffi::ResultBuffer<ffi::S32> counts,
                           bool has_counts) {
  const int64_t d = x.dimensions()[1], total = x.dimensions()[0];
  const int32_t* at = offsets.typed_data();
  for (int64_t s = 0; s + 1 < static_cast<int64_t>(offsets.element_count()); ++s) {
    if (at[s] < 0 || at[s + 1] < at[s] || at[s + 1] > total)
      return ffi::Error::InvalidArgument("offsets must not fall");
    if (has_counts) counts->typed_data()[s] = at[s + 1] - at[s];
    for (int64_t c = 0; c < d; ++c) {
      float sum = 0;
      for (int64_t row = at[s]; row < at[s + 1]; ++row) sum += x.typed_data()[row * d + c];
      sums->typed_data()[s * d + c] = sum;
    }
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(
    SegmentsCpu, Segments,
    ffi::Ffi::Bind().Arg<F32>().Arg<ffi::Buffer<ffi::S32>>().Ret<F32>().Ret<ffi::Buffer<ffi::S32>>().Attr<bool>(
        "has_counts"));
TK_OP(Segments, "(x: f32[total d], offsets: i32[segments+1]) -> (sums: f32[segments d], counts?: i32[segments])");
TK_KERNEL(Segments, CPU, SegmentsCpu);

// Trapezoids: one width fewer than values.
static ffi::Error Trapezoids(F32 widths, F32 y, F32Result area) {
  *area->typed_data() = 0;
  for (size_t i = 0; i < widths.element_count(); ++i) {
    *area->typed_data() += widths.typed_data()[i] * (y.typed_data()[i] + y.typed_data()[i + 1]) / 2;
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(TrapezoidsCpu, Trapezoids, ffi::Ffi::Bind().Arg<F32>().Arg<F32>().Ret<F32>());
TK_OP(Trapezoids, "(widths: f32[n-1], y: f32[n]) -> (area: f32[])");
TK_KERNEL(Trapezoids, CPU, TrapezoidsCpu);

// An output whose dtype the caller chooses; the kernel sees it there.
template <typename To>
static ffi::Error CastTo(F32 x, ffi::AnyBuffer y) {
  for (size_t i = 0; i < x.element_count(); ++i) {
    static_cast<To*>(y.untyped_data())[i] = static_cast<To>(x.typed_data()[i]);
  }
  return ffi::Error::Success();
}
static ffi::Error Cast(F32 x, ffi::Result<ffi::AnyBuffer> y) {
  if (y->element_type() == ffi::F64) return CastTo<double>(x, *y);
  return y->element_type() == ffi::F32 ? CastTo<float>(x, *y) : CastTo<int32_t>(x, *y);
}
XLA_FFI_DEFINE_HANDLER(CastCpu, Cast, ffi::Ffi::Bind().Arg<F32>().Ret<ffi::AnyBuffer>());
TK_OP(Cast, "<Out: f32 | f64 | i32>(x: f32[...], *, dtype: Out = f32) -> (y: Out[...]) batchable");
TK_KERNEL(Cast, CPU, CastCpu);
