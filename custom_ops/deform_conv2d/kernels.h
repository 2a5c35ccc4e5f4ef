// The passes over tiles of pixels; once for each instruction set (see gemm.h).
//
// Channels are taken in chunks that lie within one group of the convolution and one of the offsets. The columns of a
// chunk are [pixel][point of the kernel][channel]; those of the weight's matrix are in the same order.

constexpr int64_t kTile = kTilePixels;
constexpr int64_t kDepth = 256;  // of a product at a time, so that its panel stays in the first cache
constexpr int64_t kApart = 16;   // floats between rows, which else were mapped to few lines of the cache

// What a tile of pixels needs, in the memory of one thread.
struct TileMemory {
  float *columns, *outputs, *gradients;
  int64_t column_step, output_step;
  Point* points;

  TileMemory(const Problem& p, tftoolkit::Scratch& scratch, std::vector<Point>& point_memory) {
    column_step = Panels(p.most_rows) * kPanel + kApart;
    output_step = Panels(p.shape.group_outputs()) * kPanel + kApart;
    tftoolkit::Parts parts;
    const int64_t at_columns = parts.Add(kTile * column_step), at_gradients = parts.Add(kTile * column_step),
                  at_outputs = parts.Add(kTile * output_step);
    float* memory = scratch.Get(parts.size());
    columns = memory + at_columns;
    gradients = memory + at_gradients;
    outputs = memory + at_outputs;
    point_memory.resize(kTile * p.shape.points());
    points = point_memory.data();
  }
};

// Of the pixels [first, first + count) of y.
inline void FindPoints(const Problem& p, int64_t offset_group, int64_t first, int64_t count, Point* points) {
  tftoolkit::WithType(p.type, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < count * p.shape.points(); ++i) {
      points[i] = tftoolkit::deform::FindPoint(p.shape, static_cast<const T*>(p.offset), static_cast<const T*>(p.mask),
                                               first + i / p.shape.points(), offset_group, i % p.shape.points());
    }
  });
}

template <typename T>
TK_INLINE void SamplePoint(const Point& point, const T* x, int64_t channels, float* to) {
  const float nothing = point.Outside();
  for (int64_t c = 0; c < channels; ++c) to[c] = nothing;
  for (int corner = 0; corner < 4; ++corner) {
    if (point.corners[corner] < 0) continue;
    const float weight = point.Weight(corner) * point.mask;
    const T* from = x + point.corners[corner];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) to[c] += weight * tftoolkit::Load(from[c]);
  }
}

inline void FindColumns(const Problem& p, const Chunk& chunk, int64_t count, const TileMemory& memory) {
  const int64_t points = p.shape.points();
  tftoolkit::WithType(p.type, [&](auto zero) {
    const auto* x = static_cast<const decltype(zero)*>(p.x) + chunk.first;
    for (int64_t i = 0; i < count * points; ++i) {
      SamplePoint(memory.points[i], x, chunk.channels,
                  memory.columns + i / points * memory.column_step + i % points * chunk.channels);
    }
  });
}

// The pixels [first, first + count) of y.
void ForwardTile(const Problem& p, int64_t first, int64_t count, void* y) {
  thread_local tftoolkit::Scratch scratch;
  thread_local std::vector<Point> point_memory;
  const TileMemory memory(p, scratch, point_memory);
  const int64_t outputs = p.shape.group_outputs(), panels = Panels(outputs);
  int64_t found = -1;  // the group whose points these are
  for (size_t c = 0; c < p.chunks.size(); ++c) {
    const Chunk& chunk = p.chunks[c];
    if (chunk.offset_group != found) FindPoints(p, found = chunk.offset_group, first, count, memory.points);
    FindColumns(p, chunk, count, memory);
    const bool begins = c == 0 || p.chunks[c - 1].group != chunk.group;
    const int64_t rows = p.Rows(chunk);
    for (int64_t k = 0; k < rows; k += kDepth) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        const float* weight = p.packed.data() + (chunk.row * panels + panel * rows + k) * kPanel;
        const Elements<float> a{memory.columns + k, memory.column_step, 1};
        float* to = memory.outputs + panel * kPanel;
        const int64_t depth = std::min(kDepth, rows - k);
        if (begins && k == 0) {
          Product<Into::kStore>(count, 1, depth, a, weight, kPanel, to, memory.output_step);
        } else {
          Product<Into::kAdd>(count, 1, depth, a, weight, kPanel, to, memory.output_step);
        }
      }
    }
    if (c + 1 < p.chunks.size() && p.chunks[c + 1].group == chunk.group) continue;
    for (int64_t i = 0; i < count; ++i) {
      float* row = memory.outputs + i * memory.output_step;
      for (int64_t j = 0; j < outputs && !p.bias.empty(); ++j) row[j] += p.bias[chunk.group * outputs + j];
      StoreRow(p.type, row, 1, outputs, 1.0f, y, (first + i) * p.shape.out_channels + chunk.group * outputs);
    }
  }
}

// [chunk][panel of outputs][row][kPanel]: what the columns are multiplied by.
void PackWeight(ffi::ThreadPool& pool, Problem& p) {
  const int64_t outputs = p.shape.group_outputs(), panels = Panels(outputs);
  p.packed.assign(p.rows * panels * kPanel, 0.0f);
  tftoolkit::ParallelFor(pool, static_cast<int64_t>(p.chunks.size()), [&](int64_t c) {
    const Chunk& chunk = p.chunks[c];
    for (int64_t row = 0; row < p.Rows(chunk); ++row) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        float* to = p.packed.data() + (chunk.row * panels + panel * p.Rows(chunk) + row) * kPanel;
        Pack(p.type, p.weight, p.WeightRow(chunk, row) + panel * kPanel, 0, 1,
             std::min<int64_t>(kPanel, outputs - panel * kPanel), to, 0);
      }
    }
  });
}

void Forward(ffi::ThreadPool& pool, Problem& p, void* y) {
  PackWeight(pool, p);
  tftoolkit::ParallelRanges(pool, p.shape.batch * p.shape.pixels(), kTile,
                            [&](int64_t first, int64_t count) { ForwardTile(p, first, count, y); });
}

// Gradients

// [chunk][panel of rows][output][kPanel]: what the gradients by y are multiplied by.
void PackTransposed(ffi::ThreadPool& pool, Problem& p) {
  const int64_t outputs = p.shape.group_outputs();
  p.packed.clear();
  p.packed_at.clear();
  int64_t size = 0;
  for (const Chunk& chunk : p.chunks) {
    p.packed_at.push_back(size);
    size += Panels(p.Rows(chunk)) * kPanel * outputs;
  }
  p.packed.assign(size, 0.0f);
  tftoolkit::ParallelFor(pool, static_cast<int64_t>(p.chunks.size()), [&](int64_t c) {
    const Chunk& chunk = p.chunks[c];
    for (int64_t row = 0; row < p.Rows(chunk); ++row) {
      float* to = p.packed.data() + p.packed_at[c] + row / kPanel * kPanel * outputs + row % kPanel;
      PackLane(p.type, p.weight, p.WeightRow(chunk, row), outputs, 1.0f, to, kPanel);
    }
  });
}

// One point of one pixel: adds to dx and replaces the column; `g` is the gradient by the column, `dx` that of the
// chunk's channels of the picture. Returns the gradients by the offsets and by the mask.
template <typename T>
TK_INLINE PointGradient PointBackward(const Point& point, const T* x, const float* g, int64_t channels,
                                      int64_t all_channels, int64_t picture, float* column, float* dx) {
  float dots[4] = {0, 0, 0, 0};
  SamplePoint(point, x, channels, column);
  for (int corner = 0; corner < 4; ++corner) {
    if (point.corners[corner] < 0) continue;
    const float weight = point.Weight(corner) * point.mask;
    const T* from = x + point.corners[corner];
    float* to = dx + (point.corners[corner] - picture) / all_channels * channels;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < channels; ++c) {
      dot += g[c] * tftoolkit::Load(from[c]);
      to[c] += g[c] * weight;
    }
    dots[corner] = dot;
  }
  return GradientOf(point, dots);
}

struct Task {
  int64_t chunk, first, end;  // pictures
  float* dweight;             // [rows of the chunk][output_step - kApart]
};

// Columns, and gradients by everything but the weight, of a tile.
inline void TileBackward(const Problem& p, Gradients& g, int64_t c, int64_t first, int64_t count,
                         const TileMemory& memory, float* dx) {
  const Chunk& chunk = p.chunks[c];
  const int64_t points = p.shape.points();
  const int64_t picture = first / p.shape.pixels() * p.shape.height * p.shape.width * p.shape.channels;
  tftoolkit::WithType(p.type, [&](auto zero) {
    const auto* x = static_cast<const decltype(zero)*>(p.x) + chunk.first;
    for (int64_t i = 0; i < count * points; ++i) {
      const int64_t at = i / points * memory.column_step + i % points * chunk.channels;
      const int64_t place = (first + i / points) * points + i % points;
      g.of_points[c][place] = PointBackward(memory.points[i], x, memory.gradients + at, chunk.channels,
                                            p.shape.channels, picture, memory.columns + at, dx);
    }
  });
}

void BackwardTask(const Problem& p, Gradients& g, const Task& task) {
  thread_local tftoolkit::Scratch scratch;
  thread_local std::vector<Point> point_memory;
  const TileMemory memory(p, scratch, point_memory);
  const Chunk& chunk = p.chunks[task.chunk];
  const int64_t outputs = p.shape.group_outputs(), rows = p.Rows(chunk), pixels = p.shape.pixels();
  const int64_t of_picture = p.shape.height * p.shape.width, step = memory.output_step;
  std::vector<float> dx(of_picture * chunk.channels);
  for (int64_t n = task.first; n < task.end; ++n) {
    std::fill(dx.begin(), dx.end(), 0.0f);
    for (int64_t first = n * pixels; first < (n + 1) * pixels; first += kTile) {
      const int64_t count = std::min(kTile, (n + 1) * pixels - first);
      std::fill_n(memory.outputs, count * step, 0.0f);
      Pack(p.type, g.dy, first * p.shape.out_channels + chunk.group * outputs, p.shape.out_channels, count, outputs,
           memory.outputs, step);
      for (int64_t panel = 0; panel < Panels(rows); ++panel) {
        Product<Into::kStore>(count, 1, outputs, {memory.outputs, step, 1},
                              p.packed.data() + p.packed_at[task.chunk] + panel * kPanel * outputs, kPanel,
                              memory.gradients + panel * kPanel, memory.column_step);
      }
      FindPoints(p, chunk.offset_group, first, count, memory.points);
      TileBackward(p, g, task.chunk, first, count, memory, dx.data());
      Product<Into::kAdd>(rows, Panels(outputs), count, {memory.columns, 1, memory.column_step}, memory.outputs, step,
                          task.dweight, step - kApart);
    }
    for (int64_t i = 0; i < of_picture; ++i) {
      StoreRow(p.type, dx.data() + i * chunk.channels, 1, chunk.channels, 1.0f, g.dx,
               (n * of_picture + i) * p.shape.channels + chunk.first);
    }
  }
}

void Backward(ffi::ThreadPool& pool, Problem& p, Gradients& g) {
  constexpr int64_t kMostSets = 8;  // of pictures, each with a sum of its own for the weight
  PackTransposed(pool, p);
  const int64_t wide = Panels(p.shape.group_outputs()) * kPanel, chunks = static_cast<int64_t>(p.chunks.size());
  const int64_t sets = std::min(kMostSets, p.shape.batch);
  std::vector<float> dweight(std::max<int64_t>(1, sets) * p.rows * wide);
  tftoolkit::ParallelFor(pool, sets * chunks, [&](int64_t i) {
    const int64_t set = i / chunks, chunk = i % chunks;
    BackwardTask(p, g,
                 {chunk, p.shape.batch * set / sets, p.shape.batch * (set + 1) / sets,
                  dweight.data() + (set * p.rows + p.chunks[chunk].row) * wide});
  });
  tftoolkit::ParallelFor(pool, chunks, [&](int64_t c) {
    const Chunk& chunk = p.chunks[c];
    for (int64_t row = 0; row < p.Rows(chunk); ++row) {
      float* sum = dweight.data() + (chunk.row + row) * wide;
      for (int64_t set = 1; set < sets; ++set) {
        for (int64_t j = 0; j < wide; ++j) sum[j] += sum[set * p.rows * wide + j];
      }
      StoreRow(p.type, sum, 1, p.shape.group_outputs(), 1.0f, g.dweight, p.WeightRow(chunk, row));
    }
  });
}
