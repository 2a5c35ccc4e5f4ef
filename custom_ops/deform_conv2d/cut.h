// How deform_conv2d is cut on the CPU, and what its kernels of every instruction set are given.

#ifndef TFTOOLKIT_DEFORM_CONV2D_CUT_H_
#define TFTOOLKIT_DEFORM_CONV2D_CUT_H_

#include <algorithm>
#include <limits>
#include <vector>

#include "problem.h"

namespace tftoolkit {
namespace deform {

constexpr int64_t kTilePixels = 96;

// Channels within one group of the convolution and one of the offsets.
struct Chunk {
  int64_t first, channels, group, offset_group;
  int64_t row;  // of the weight's matrix, [point][channel] behind those of the chunks before
};

struct Problem {
  FloatType type;
  const void *x, *offset, *mask, *weight;  // mask may be null
  Shape shape;
  std::vector<float> bias;  // empty: none
  std::vector<Chunk> chunks;
  int64_t rows = 0, most_rows = 0;  // of all chunks, of the largest
  // The weight as kernels read it, of each instruction set in another way.
  std::vector<float> packed;
  std::vector<int64_t> packed_at;

  int64_t Rows(const Chunk& chunk) const { return shape.points() * chunk.channels; }

  // The element of the weight where a row of a chunk begins.
  int64_t WeightRow(const Chunk& chunk, int64_t row) const {
    const int64_t in_group = chunk.first % shape.group_channels() + row % chunk.channels;
    return (row / chunk.channels * shape.group_channels() + in_group) * shape.out_channels +
           chunk.group * shape.group_outputs();
  }

  void FindChunks() {
    constexpr int64_t kMost = 64;
    const int64_t in_offset_group = shape.channels / shape.offset_groups;
    for (int64_t first = 0; first < shape.channels;) {
      const int64_t group = first / shape.group_channels(), offset_group = first / in_offset_group;
      const int64_t end =
          std::min({(group + 1) * shape.group_channels(), (offset_group + 1) * in_offset_group, first + kMost});
      chunks.push_back({first, end - first, group, offset_group, rows});
      rows += Rows(chunks.back());
      most_rows = std::max(most_rows, Rows(chunks.back()));
      first = end;
    }
  }
};

inline ffi::Error MakeProblem(const ffi::AnyBuffer& x, const ffi::AnyBuffer& offset, const ffi::AnyBuffer& weight,
                              const ffi::AnyBuffer* mask, const Steps& along_y, const Steps& along_x, Problem& p) {
  ffi::Error wrong = FindShape(x, offset, weight, mask, along_y, along_x, p.shape);
  if (wrong.failure()) return wrong;
  const ffi::DataType dtype = x.element_type();
  p.type = dtype == ffi::F32 ? FloatType::kFloat : dtype == ffi::BF16 ? FloatType::kBFloat16 : FloatType::kHalf;
  p.x = x.untyped_data();
  p.offset = offset.untyped_data();
  p.weight = weight.untyped_data();
  p.mask = mask == nullptr ? nullptr : mask->untyped_data();
  p.FindChunks();
  return wrong;
}

// By y; comes out: those by x and the weight, and what each chunk adds to those of each [pixel][point].
struct Gradients {
  const void* dy;
  void *dx, *dweight;
  std::vector<std::vector<PointGradient>> of_points;
};

}  // namespace deform
}  // namespace tftoolkit

#endif  // TFTOOLKIT_DEFORM_CONV2D_CUT_H_
