// The loss of sums of an encoder's and a predictor's logits, without their joint tensor; once for each instruction set
// (see gemm.h).
//
// e^(x + y) = e^x e^y, so that the sums over classes are a product of two matrices of exponentials, each divided by the
// largest of its row: [time, classes] by [classes, positions], and the gradients are two more. Where the two rows are
// large at classes so different that next to nothing is left of the sum, the cell is computed by itself.

constexpr float kLeast = -50;  // the logarithm of the sum from which on the product will do
constexpr int64_t kFramesPerTask = 32;
constexpr int64_t kColumns = 64;  // classes of a task, backward

struct Additive {
  const void *encoder, *predictor;  // [batch, time, classes], [batch, positions, classes]
  const float* log_sums;            // [batch, time, positions]: less the largest ones of both rows
  std::vector<float> encoder_max, predictor_max;

  float Logit(const Problem& p, const void* from, int64_t row, int64_t c) const {
    return tftoolkit::WithType(p.type, [&](auto zero) {
      return tftoolkit::Load(static_cast<const decltype(zero)*>(from)[row * p.classes + c]);
    });
  }
  // Of a class in a cell, less the largest ones.
  float Centred(const Problem& p, int64_t b, int64_t t, int64_t u, int64_t c) const {
    const int64_t frame = b * p.time + t, position = b * p.positions + u;
    return (Logit(p, encoder, frame, c) - encoder_max[frame]) +
           (Logit(p, predictor, position, c) - predictor_max[position]);
  }

  Lattice MakeLattice(const Problem& p, int64_t b) const {
    const Sequence& s = p.sequences[b];
    Lattice lattice(s.frames, s.count);
    for (int64_t t = 0; t < s.frames; ++t) {
      for (int64_t u = 0; u <= s.count; ++u) {
        const float log_sum = log_sums[p.Cell(b, t, u)];
        lattice.is_number = lattice.is_number && std::isfinite(log_sum);
        lattice.Blank(t + u)[u] = Centred(p, b, t, u, p.blank) - log_sum;
        if (u < s.count) lattice.Label(t + u)[u] = Centred(p, b, t, u, s.labels[u]) - log_sum;
      }
    }
    return lattice;
  }
};

// The largest of each row, or 0 where it is not finite.
inline void FindLargest(ffi::ThreadPool& pool, const Problem& p, Additive& a) {
  a.encoder_max.resize(p.batch * p.time);
  a.predictor_max.resize(p.batch * p.positions);
  const int64_t frames = p.batch * p.time;
  tftoolkit::ParallelRanges(pool, frames + p.batch * p.positions, kFramesPerTask, [&](int64_t begin, int64_t count) {
    for (int64_t i = begin; i < begin + count; ++i) {
      const bool of_encoder = i < frames;
      const int64_t row = of_encoder ? i : i - frames;
      const float largest = LargestOfRow(p.type, of_encoder ? a.encoder : a.predictor, row * p.classes, p.classes);
      (of_encoder ? a.encoder_max : a.predictor_max)[row] = std::isfinite(largest) ? largest : 0;
    }
  });
}

// e^(x - shift) of classes [begin, begin + n) of a row, `step` floats apart.
inline void Exponentials(const Problem& p, const void* from, int64_t row, int64_t begin, int64_t n, float shift,
                         float* to, int64_t step) {
  alignas(64) float result[kSoftmaxBlock];
  for (int64_t at = 0; at < n; at += kSoftmaxBlock) {
    const int64_t count = std::min(kSoftmaxBlock, n - at);
    const FloatBlock block(p.type, from, row * p.classes + begin + at, count, kMinusInfinity);
    for (int64_t i = 0; i < count; i += kLanes) {
      const Vector x = LoadVector(block.data + i);
      // Of plus infinity, which Exp2 does not take, NaN, so that its cells are computed by themselves.
      StoreVector(result + i, x == -kMinusInfinity ? x - x : Exp2((x - shift) * kLog2E));
    }
    for (int64_t i = 0; i < count; ++i) to[(at + i) * step] = result[i];
  }
}

// The logits of a cell, less the largest ones, at classes [begin, begin + n).
inline void CellLogits(const Problem& p, const Additive& a, int64_t b, int64_t t, int64_t u, int64_t begin, int64_t n,
                       float* to) {
  for (int64_t c = 0; c < n; ++c) to[c] = a.Centred(p, b, t, u, begin + c);
}

void Losses(ffi::ThreadPool& pool, const Problem& p, const AdditiveLoss& call) {
  Additive a{call.encoder, call.predictor, call.log_sums, {}, {}};
  FindLargest(pool, p, a);
  const int64_t width = Panels(p.positions) * kPanel, blocks = (p.time + kFramesPerTask - 1) / kFramesPerTask;
  std::vector<float> powers(p.batch * p.classes * width);  // [batch, classes, positions]
  tftoolkit::ParallelFor(pool, p.batch * p.positions, [&](int64_t i) {
    float* to = powers.data() + i / p.positions * p.classes * width + i % p.positions;
    Exponentials(p, a.predictor, i, 0, p.classes, a.predictor_max[i], to, width);
  });
  tftoolkit::ParallelFor(pool, p.batch * blocks, [&](int64_t i) {
    thread_local tftoolkit::Scratch scratch;
    const int64_t b = i / blocks, first = i % blocks * kFramesPerTask, n = std::min(kFramesPerTask, p.time - first);
    tftoolkit::Parts parts;
    const int64_t of_encoder_at = parts.Add(n * p.classes), sums_at = parts.Add(n * width),
                  logits_at = parts.Add(p.classes);
    float* memory = scratch.Get(parts.size());
    float *of_encoder = memory + of_encoder_at, *sums = memory + sums_at, *logits = memory + logits_at;
    for (int64_t t = 0; t < n; ++t) {
      const int64_t frame = b * p.time + first + t;
      Exponentials(p, a.encoder, frame, 0, p.classes, a.encoder_max[frame], of_encoder + t * p.classes, 1);
    }
    Product<Into::kStore>(n, width / kPanel, p.classes, {of_encoder, p.classes, 1},
                          powers.data() + b * p.classes * width, width, sums, width);
    for (int64_t t = first; t < first + n; ++t) {
      for (int64_t u = 0; u < p.positions; ++u) {
        float& log_sum = call.log_sums[p.Cell(b, t, u)];
        log_sum = p.sequences[b].Has(t, u) ? std::log(sums[(t - first) * width + u]) : 0;
        if (log_sum >= kLeast) continue;
        CellLogits(p, a, b, t, u, 0, p.classes, logits);
        const RowSum row = SumRow(tftoolkit::FloatType::kFloat, logits, 0, p.classes);
        log_sum = row.shift + std::log(row.sum);
      }
    }
  });
  tftoolkit::ParallelFor(pool, p.batch, [&](int64_t b) {
    Lattice lattice = a.MakeLattice(p, b);
    call.losses[b] = LossOf(lattice);
  });
}

// What a sequence's cells give to the gradients.
struct Shares {
  float d_loss;               // 0 where the loss is infinite, NaN where it is NaN
  std::vector<float> factor;  // [frames, positions]: of e^x e^y; 0 of cells that are computed by themselves
  std::vector<std::pair<int64_t, int64_t>> alone;  // these, frame and position
};

inline Shares MakeShares(const Problem& p, const Additive& a, int64_t b, Lattice& lattice, float d_loss,
                         const float* d_log_sum) {
  const Sequence& s = p.sequences[b];
  Shares shares{Expect(lattice, d_loss), std::vector<float>(s.frames * p.positions), {}};
  const bool computed = shares.d_loss != 0 && shares.d_loss == shares.d_loss;
  for (int64_t t = 0; t < s.frames; ++t) {
    for (int64_t u = 0; u <= s.count; ++u) {
      float &blank = lattice.Blank(t + u)[u], &label = lattice.Label(t + u)[u];
      if (!computed) blank = label = 0;
      if (u == s.count) label = 0;
      label *= p.label_weight;
      const int64_t cell = p.Cell(b, t, u);
      const float share = shares.d_loss * (blank + label) + d_log_sum[cell];
      const bool in_product = a.log_sums[cell] >= kLeast || share != share;
      shares.factor[t * p.positions + u] = in_product ? share * std::exp(-a.log_sums[cell]) : 0;
      if (!in_product) shares.alone.emplace_back(t, u);
    }
  }
  return shares;
}

// Both gradients of one sequence at classes [first, first + n).
void StoreColumns(const Problem& p, const Additive& a, int64_t b, int64_t first, int64_t n, Lattice& lattice,
                  const Shares& shares, const AdditiveGradient& call) {
  const Sequence& s = p.sequences[b];
  const int64_t rows = s.count + 1;
  thread_local tftoolkit::Scratch scratch;
  tftoolkit::Parts parts;
  const int64_t x_at = parts.Add(s.frames * kColumns), y_at = parts.Add(rows * kColumns),
                dx_at = parts.Add(s.frames * kColumns), dy_at = parts.Add(rows * kColumns),
                cell_at = parts.Add(kColumns);
  float* memory = scratch.Get(parts.size());
  float *x = memory + x_at, *y = memory + y_at, *dx = memory + dx_at, *dy = memory + dy_at, *of_cell = memory + cell_at;
  std::fill_n(memory, parts.size(), 0.0f);
  for (int64_t t = 0; t < s.frames; ++t) {
    const int64_t row = b * p.time + t;
    Exponentials(p, a.encoder, row, first, n, a.encoder_max[row], x + t * kColumns, 1);
  }
  for (int64_t u = 0; u < rows; ++u) {
    const int64_t row = b * p.positions + u;
    Exponentials(p, a.predictor, row, first, n, a.predictor_max[row], y + u * kColumns, 1);
  }
  const float* factor = shares.factor.data();
  constexpr int64_t kPanels = kColumns / kPanel;
  Product<Into::kStore>(s.frames, kPanels, rows, {factor, p.positions, 1}, y, kColumns, dx, kColumns);
  Product<Into::kStore>(rows, kPanels, s.frames, {factor, 1, p.positions}, x, kColumns, dy, kColumns);
  for (int64_t i = 0; i < s.frames * kColumns; ++i) dx[i] *= x[i];
  for (int64_t i = 0; i < rows * kColumns; ++i) dy[i] *= y[i];
  for (const auto& [t, u] : shares.alone) {
    const int64_t cell = p.Cell(b, t, u);
    const float share = shares.d_loss * (lattice.Blank(t + u)[u] + lattice.Label(t + u)[u]) + call.d_log_sum[cell];
    CellLogits(p, a, b, t, u, first, n, of_cell);
    for (int64_t c = 0; c < n; ++c) {
      const float gradient = tftoolkit::Exp(of_cell[c] - a.log_sums[cell]) * share;
      dx[t * kColumns + c] += gradient;
      dy[u * kColumns + c] += gradient;
    }
  }
  const auto take = [&](int64_t t, int64_t u, int64_t c, float expected) {
    if (c < first || c >= first + n) return;
    dx[t * kColumns + c - first] -= expected * shares.d_loss;
    dy[u * kColumns + c - first] -= expected * shares.d_loss;
  };
  for (int64_t t = 0; t < s.frames; ++t) {
    for (int64_t u = 0; u <= s.count; ++u) {
      take(t, u, p.blank, lattice.Blank(t + u)[u]);
      if (u < s.count) take(t, u, s.labels[u], lattice.Label(t + u)[u]);
    }
  }
  const auto store = [&](const float* from, int64_t count, int64_t all, void* to) {
    for (int64_t row = 0; row < all; ++row) {
      const float nothing = 0;
      StoreRow(p.type, row < count ? from + row * kColumns : &nothing, row < count, n, 1.0f, to,
               (b * all + row) * p.classes + first);
    }
  };
  store(dx, s.frames, p.time, call.d_encoder);
  store(dy, s.frames > 0 ? rows : 0, p.positions, call.d_predictor);
}

void Gradients(ffi::ThreadPool& pool, const Problem& p, const AdditiveGradient& call) {
  Additive a{call.encoder, call.predictor, call.log_sums, {}, {}};
  FindLargest(pool, p, a);
  std::vector<Lattice> lattices(p.batch, Lattice(0, 0));
  std::vector<Shares> shares(p.batch);
  tftoolkit::ParallelFor(pool, p.batch, [&](int64_t b) {
    lattices[b] = a.MakeLattice(p, b);
    shares[b] = MakeShares(p, a, b, lattices[b], call.d_loss[b], call.d_log_sum);
  });
  const int64_t blocks = (p.classes + kColumns - 1) / kColumns;
  tftoolkit::ParallelFor(pool, p.batch * blocks, [&](int64_t i) {
    const int64_t b = i / blocks, first = i % blocks * kColumns;
    StoreColumns(p, a, b, first, std::min(kColumns, p.classes - first), lattices[b], shares[b], call);
  });
}
