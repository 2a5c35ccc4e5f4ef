// Deformable convolution and its gradients on CUDA; deform_conv2d.cc has the maths.
//
// Pixels of y are taken in chunks whose columns take at most 64 MiB; columns are made, then multiplied (gemm_cuda.h:
// bfloat16 and float16 on tensor cores, with columns rounded to the dtype, as a product's factors must be). Columns are
// written and read once: 2 K C numbers per pixel for 2 K C O operations.
//
// Gradients: the gradients by the columns (a product), what they give to offsets, mask and x, and the weight's (another
// product). Several points give to one pixel of x, in no order that could be kept. So terms are added as whole numbers
// of 64 bits, times a power of 2 by which the largest term of the chunk fits, and the sum is the same in every order;
// its error, 2^-30 of the largest term or less, is smaller than that of a sum in float32. Where a gradient by a column
// is not finite, no such power exists, and all of dx is NaN.
//
// gpu.h: what kernels get; gpu_forward.h, gpu_backward.h: the kernels.

#include <algorithm>
#include <cstdint>

#include "gpu.h"
#include "tftoolkit/dispatch.h"

namespace {

using gpu::Chunk;
using gpu::Shape;
using tftoolkit::Data;
namespace cuda = tftoolkit::cuda;
namespace deform = tftoolkit::deform;
using Result = ffi::Result<ffi::AnyBuffer>;

constexpr int64_t kMostBytes = int64_t{64} << 20;

// Scratch memory; afterwards `enough` says whether all of it was there.
class Memory {
 public:
  explicit Memory(ffi::ScratchAllocator& scratch) : scratch_(scratch) {}
  template <typename T>
  T* Get(int64_t count) {
    const std::optional<void*> memory = scratch_.Allocate(std::max<int64_t>(1, count) * sizeof(T));
    enough_ &= memory.has_value();
    return memory ? static_cast<T*>(*memory) : nullptr;
  }
  ffi::Error Check() const {
    if (enough_) return ffi::Error::Success();
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no GPU memory for the columns of a chunk and sums");
  }

 private:
  ffi::ScratchAllocator& scratch_;
  bool enough_ = true;
};

// Pixels in a chunk: from the shape alone, since sums over chunks depend on it.
int64_t ChunkPixels(const Shape& s) {
  const int64_t bytes = sizeof(float) * s.points() * s.channels;
  const int64_t tiles = std::max<int64_t>(1, kMostBytes / std::max<int64_t>(1, bytes) / gpu::kTile);
  return std::min(tiles * gpu::kTile, s.batch * s.pixels());
}

// run(chunk) for all chunks; of none, too, if `empty`: something must be written then.
template <typename Run>
ffi::Error ForChunks(const Shape& s, void* columns, float* dcolumns, bool empty, const Run& run) {
  const int64_t all = s.batch * s.pixels(), step = ChunkPixels(s);
  if (all == 0 && empty) return run(Chunk{0, 0, columns, dcolumns, true, true});
  for (int64_t first = 0; first < all; first += step) {
    const int64_t count = std::min(step, all - first);
    ffi::Error failed = run(Chunk{first, count, columns, dcolumns, first == 0, first + count == all});
    if (failed.failure()) return failed;
  }
  return ffi::Error::Success();
}

ffi::Error DeformConv2d(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer x, ffi::AnyBuffer offset,
                        ffi::AnyBuffer weight, ffi::AnyBuffer bias, ffi::AnyBuffer mask, Result y, int64_t dilation_x,
                        int64_t dilation_y, bool has_bias, bool has_mask, int64_t padding_x, int64_t padding_y,
                        int64_t stride_x, int64_t stride_y) {
  gpu::Forward call{{},
                    x.untyped_data(),
                    offset.untyped_data(),
                    weight.untyped_data(),
                    has_bias ? bias.untyped_data() : nullptr,
                    has_mask ? mask.untyped_data() : nullptr,
                    y->untyped_data()};
  ffi::Error wrong = deform::FindShape(x, offset, weight, has_mask ? &mask : nullptr, {stride_y, padding_y, dilation_y},
                                       {stride_x, padding_x, dilation_x}, call.shape);
  if (wrong.failure() || y->element_count() == 0) return wrong;
  return tftoolkit::WithFloatType("DeformConv2d", x.element_type(), [&](auto type) {
    using T = decltype(type);
    Memory memory(scratch);
    T* columns = memory.Get<T>(ChunkPixels(call.shape) * call.shape.points() * call.shape.channels);
    if (ffi::Error missing = memory.Check(); missing.failure()) return missing;
    return ForChunks(call.shape, columns, nullptr, false,
                     [&](const Chunk& chunk) { return gpu::LaunchForward<T>(stream, call, chunk); });
  });
}

// How many bits the largest term may have: of 62 those are left that as many terms as an element may have take.
int Room(const Shape& s) {
  int room = 62;
  for (int64_t terms = ChunkPixels(s) * s.points(); terms > 0; terms /= 2) --room;
  return room;
}

ffi::Error DeformConv2dGrad(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer dy, ffi::AnyBuffer x,
                            ffi::AnyBuffer offset, ffi::AnyBuffer weight, ffi::AnyBuffer mask, Result dx,
                            Result doffset, Result dweight, Result dbias, Result dmask, int64_t dilation_x,
                            int64_t dilation_y, bool has_dmask, bool masked, int64_t padding_x, int64_t padding_y,
                            int64_t stride_x, int64_t stride_y) {
  if (has_dmask && !masked) return deform::Wrong("has_dmask=True needs masked=True");
  Shape s{};
  ffi::Error wrong = deform::FindShape(x, offset, weight, masked ? &mask : nullptr, {stride_y, padding_y, dilation_y},
                                       {stride_x, padding_x, dilation_x}, s);
  if (wrong.failure()) return wrong;
  return tftoolkit::WithFloatType("DeformConv2dGrad", x.element_type(), [&](auto type) {
    using T = decltype(type);
    Memory memory(scratch);
    const int64_t most = ChunkPixels(s) * s.points() * s.channels;
    const bool several = ChunkPixels(s) < s.batch * s.pixels();
    const int64_t of_x = static_cast<int64_t>(x.element_count()), of_weight = weight.element_count();
    const gpu::Backward call{s,
                             dy.untyped_data(),
                             x.untyped_data(),
                             offset.untyped_data(),
                             weight.untyped_data(),
                             masked ? mask.untyped_data() : nullptr,
                             dx->untyped_data(),
                             doffset->untyped_data(),
                             dweight->untyped_data(),
                             dbias->untyped_data(),
                             has_dmask ? dmask->untyped_data() : nullptr,
                             several ? memory.Get<float>(of_x) : nullptr,
                             several ? memory.Get<float>(of_weight) : nullptr,
                             memory.Get<unsigned long long>(of_x),
                             memory.Get<unsigned>(1),
                             Room(s)};
    T* columns = memory.Get<T>(most);
    float* dcolumns = memory.Get<float>(most);
    if (ffi::Error missing = memory.Check(); missing.failure()) return missing;
    return ForChunks(s, columns, dcolumns, true,
                     [&](const Chunk& chunk) { return gpu::LaunchBackward<T>(stream, call, chunk); });
  });
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

// Not command-buffer compatible: scratch memory must not be captured.
XLA_FFI_DEFINE_HANDLER(DeformConv2dCuda, DeformConv2d,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT.Attr<int64_t>("dilation_x")
                           .Attr<int64_t>("dilation_y")
                           .Attr<bool>("has_bias")
                           .Attr<bool>("has_mask")
                           .Attr<int64_t>("padding_x")
                           .Attr<int64_t>("padding_y")
                           .Attr<int64_t>("stride_x")
                           .Attr<int64_t>("stride_y"));

XLA_FFI_DEFINE_HANDLER(DeformConv2dGradCuda, DeformConv2dGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Ctx<ffi::ScratchAllocator>()
                               TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT TK_OUT TK_OUT TK_OUT TK_OUT
                           .Attr<int64_t>("dilation_x")
                           .Attr<int64_t>("dilation_y")
                           .Attr<bool>("has_dmask")
                           .Attr<bool>("masked")
                           .Attr<int64_t>("padding_x")
                           .Attr<int64_t>("padding_y")
                           .Attr<int64_t>("stride_x")
                           .Attr<int64_t>("stride_y"));

TK_KERNEL(DeformConv2d, CUDA, DeformConv2dCuda);
TK_KERNEL(DeformConv2dGrad, CUDA, DeformConv2dGradCuda);
