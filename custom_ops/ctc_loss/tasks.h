// The passes over sequences and who does which part; once for each instruction set (see gemm.h). Tasks follow from the
// shapes alone, so results do not depend on the number of threads.

constexpr int64_t kFrames = 32;                // of a block: its rows of states fit the second cache
constexpr int64_t kElementsPerTask = 1 << 15;  // logits

// The largest logit of each frame, and the sum of e^(logit - largest); 0 and 1 behind a sequence's last frame.
void SumFrames(ffi::ThreadPool& pool, const Problem& p, float* shifts, float* sums) {
  const int64_t per_task = std::max<int64_t>(1, kElementsPerTask / p.classes);
  tftoolkit::ParallelRanges(pool, p.batch * p.time, per_task, [&](int64_t begin, int64_t count) {
    for (int64_t i = begin; i < begin + count; ++i) {
      const bool is_frame = i % p.time < p.sequences[i / p.time].frames;
      const RowSum row = is_frame ? SumRow(p.type, p.logits, i * p.classes, p.classes) : RowSum{0, 1};
      shifts[i] = row.shift;
      sums[i] = row.sum;
    }
  });
}

// What a sequence's frames divide by, as a logarithm; NaN where a logit is NaN or infinite, or all are minus infinity.
inline double LogSums(const Problem& p, int64_t b, const float* sums) {
  double total = 0;
  for (int64_t t = 0; t < p.sequences[b].frames; ++t) total += std::log(static_cast<double>(sums[b * p.time + t]));
  return std::isfinite(total) ? total : std::numeric_limits<double>::quiet_NaN();
}

// The sum over all ways through a sequence's states. Unless null, `saved` gets the row before each block of frames but
// the first.
WideScalar RunForward(const Problem& p, int64_t b, const float* shifts, float* saved) {
  const Sequence& s = p.sequences[b];
  const int64_t size = Row::Size(s.count);
  thread_local tftoolkit::Scratch scratch;
  float* memory = scratch.Get(2 * size + Emission::Size(s.count));
  Row row(memory, s.count), next(memory + size, s.count);
  row.Start(s.count, 0);
  for (int64_t t = 0; t < s.frames; ++t) {
    if (saved != nullptr && t % kFrames == 0 && t > 0)
      std::copy_n(row.blank - kLanes, size, saved + t / kFrames * size);
    Forward(s, t, Emit(p, s, b, t, shifts[b * p.time + t], memory + 2 * size), row, next);
    std::swap(row, next);
  }
  const WideScalar blank{row.blank[s.count], row.blank_exponent[s.count]};
  if (s.count == 0) return blank;
  return Add(blank, {row.label[s.count - 1], row.label_exponent[s.count - 1]});
}

// Saves the row at the first frame of each block but the first.
void RunBackward(const Problem& p, int64_t b, const float* shifts, float* saved) {
  const Sequence& s = p.sequences[b];
  const int64_t size = Row::Size(s.count);
  thread_local tftoolkit::Scratch scratch;
  float* memory = scratch.Get(size + Emission::Size(s.count));
  const Row row(memory, s.count);
  Row(row).Start(s.count, s.count);
  for (int64_t t = s.frames - 1; t >= kFrames; --t) {
    Backward(s, t, Emit(p, s, b, t, shifts[b * p.time + t], memory + size), row,
             [](int64_t, const Wide&, const Wide&) {});
    if (t % kFrames == 0) std::copy_n(memory, size, saved + t / kFrames * size);
  }
}

void Losses(ffi::ThreadPool& pool, const Problem& p, bool zero_infinity, float* losses, float* shifts, float* sums) {
  SumFrames(pool, p, shifts, sums);
  tftoolkit::ParallelFor(pool, p.batch, [&](int64_t b) {
    const Sequence& s = p.sequences[b];
    const bool fits = s.count <= s.frames;
    const double log_all = fits ? Log(RunForward(p, b, shifts, nullptr)) : static_cast<double>(kMinusInfinity);
    const float loss = static_cast<float>(LogSums(p, b, sums) - log_all);
    losses[b] = zero_infinity && std::isinf(loss) ? 0.0f : loss;
  });
}

// What a block of a sequence's frames needs to know.
struct Known {
  float d_loss;                          // 0 where the loss is infinite, NaN where it is NaN
  WideScalar total;                      // over all ways
  std::vector<float> forward, backward;  // rows before and behind each block
};

inline Known Prepare(const Problem& p, int64_t b, const Gradients& g) {
  const Sequence& s = p.sequences[b];
  const int64_t rows = (s.frames + kFrames - 1) / kFrames * Row::Size(s.count);
  Known known{g.d_loss[b], {0, 0}, {}, {}};
  if (std::isnan(LogSums(p, b, g.sums))) known.d_loss = std::numeric_limits<float>::quiet_NaN();
  if (s.count > s.frames) return known;
  known.forward.resize(rows);
  known.backward.resize(rows);
  return known;
}

// How often each class is expected at frame t, into `taken`.
struct Expected {
  const Sequence& s;
  float* taken;
  float* labels;  // by pair, from the frame's first on

  TK_INLINE void Add(int64_t t, const Emission& e, const Row& forward, Row backward, WideScalar total, int64_t blank) {
    const float inverse = static_cast<float>(1 / total.mantissa), exponent = static_cast<float>(total.exponent);
    Vector blanks = {};
    Backward(s, t, e, backward, [&](int64_t k, const Wide& of_blank, const Wide& of_label) TK_INLINE_LAMBDA {
      const Wide on_blank = forward.Blank(k), on_label = forward.Label(k);
      blanks +=
          on_blank.mantissa * of_blank.mantissa * inverse * PowerOf2(on_blank.exponent + of_blank.exponent - exponent);
      StoreVector(labels + k - e.first, on_label.mantissa * of_label.mantissa * inverse *
                                            PowerOf2(on_label.exponent + of_label.exponent - exponent));
    });
    taken[blank] = SumOf(blanks);
    for (int64_t k = e.first; k <= std::min(s.Last(t), s.count - 1); ++k) taken[s.labels[k]] += labels[k - e.first];
  }
  void Clear(int64_t t, int64_t blank) {
    taken[blank] = 0;
    for (int64_t k = s.First(t); k <= std::min(s.Last(t), s.count - 1); ++k) taken[s.labels[k]] = 0;
  }
};

inline void StoreGradient(const Problem& p, const Gradients& g, int64_t b, int64_t t, float d_loss,
                          const float* taken) {
  const int64_t i = b * p.time + t;
  StoreSoftmaxGradient(p.type, p.logits, g.dlogits, p.Row(b, t), p.classes, g.shifts[i],
                       d_loss / g.sums[i] + g.d_sum[i], taken, d_loss);
}

// The gradient of frames [begin, end) of a sequence.
void StoreBlock(const Problem& p, const Gradients& g, int64_t b, int64_t begin, int64_t end, const Known& known) {
  const Sequence& s = p.sequences[b];
  thread_local tftoolkit::Scratch scratch;
  const int64_t size = Row::Size(s.count), emitted = Emission::Size(s.count), n = end - begin;
  tftoolkit::Parts parts;
  const int64_t taken_at = parts.Add(p.classes + kLanes), labels_at = parts.Add(Row::Step(s.count)),
                row_at = parts.Add(size), rows_at = parts.Add((n + 1) * size), emissions_at = parts.Add(n * emitted);
  float* memory = scratch.Get(parts.size());
  float *taken = memory + taken_at, *rows = memory + rows_at;
  std::fill_n(taken, p.classes + kLanes, 0.0f);
  // Where there is no way, or none that counts, nothing is expected.
  if (known.forward.empty() || known.total.mantissa == 0 || !(known.d_loss != 0) || std::isnan(known.d_loss)) {
    const float d_loss = std::isnan(known.d_loss) ? known.d_loss : 0;
    for (int64_t t = begin; t < end; ++t) StoreGradient(p, g, b, t, d_loss, taken);
    return;
  }
  std::vector<Emission> emissions;
  emissions.reserve(n);
  Row first(rows, s.count), last(memory + row_at, s.count);
  if (begin == 0) {
    first.Start(s.count, 0);
  } else {
    std::copy_n(known.forward.data() + begin / kFrames * size, size, rows);
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t t = begin + i;
    emissions.push_back(Emit(p, s, b, t, g.shifts[b * p.time + t], memory + emissions_at + i * emitted));
    Forward(s, t, emissions[i], Row(rows + i * size, s.count), Row(rows + (i + 1) * size, s.count));
  }
  if (end == s.frames) {
    last.Start(s.count, s.count);
  } else {
    std::copy_n(known.backward.data() + end / kFrames * size, size, memory + row_at);
  }
  Expected expected{s, taken, memory + labels_at};
  for (int64_t i = n - 1; i >= 0; --i) {
    expected.Add(begin + i, emissions[i], Row(rows + (i + 1) * size, s.count), last, known.total, p.blank);
    StoreGradient(p, g, b, begin + i, known.d_loss, taken);
    expected.Clear(begin + i, p.blank);
  }
}

void LogitGradients(ffi::ThreadPool& pool, const Problem& p, const Gradients& g) {
  std::vector<Known> known;
  known.reserve(p.batch);
  for (int64_t b = 0; b < p.batch; ++b) known.push_back(Prepare(p, b, g));
  tftoolkit::ParallelFor(pool, 2 * p.batch, [&](int64_t i) {
    Known& of = known[i / 2];
    if (p.sequences[i / 2].count > p.sequences[i / 2].frames) return;
    if (i % 2 == 0) {
      of.total = RunForward(p, i / 2, g.shifts, of.forward.data());
    } else {
      RunBackward(p, i / 2, g.shifts, of.backward.data());
    }
  });
  const int64_t blocks = (p.time + kFrames - 1) / kFrames;
  tftoolkit::ParallelFor(pool, p.batch * blocks, [&](int64_t i) {
    const int64_t b = i / blocks, begin = i % blocks * kFrames, end = std::min(begin + kFrames, p.time);
    const int64_t frames = std::clamp(p.sequences[b].frames, begin, end);
    if (begin < frames) StoreBlock(p, g, b, begin, frames, known[b]);
    const float nothing = 0;
    StoreRow(p.type, &nothing, 0, (end - frames) * p.classes, 1.0f, g.dlogits, p.Row(b, frames));
  });
}
