// How the passes are cut into tasks; once for each instruction set (see gemm.h). The cuts and the order in which parts
// are added follow from the shapes alone, so results do not depend on the number of threads.

// Puts together what the groups found of a token: `sums[group]`, of which each knows the `weights[group]` of its
// classes.
inline Loss Combine(const Problem& p, const std::vector<Sums>& sums, const std::vector<double>& weights, int64_t lane,
                    int64_t label, int64_t label_group) {
  double shift = 0, sum = 0, total = 0;
  bool any = false;
  for (const Sums& s : sums) {
    if (!(s.sum[lane] > 0)) continue;
    shift = any ? std::max<double>(shift, s.shift[lane]) : s.shift[lane];
    any = true;
  }
  for (size_t g = 0; g < sums.size(); ++g) {
    const double part = sums[g].sum[lane], move = sums[g].shift[lane] - shift;
    if (part != 0) sum += part * std::exp(move);
    if (p.smoothing != 0) total += sums[g].total[lane] + weights[g] * move;
  }
  return LossOf(p, shift, sum, total, sums[label_group].own[lane] - shift, p.ClassWeight(label), p.weight_sum);
}

// The logits of a chunk, if wanted, and what each group adds up to.
class ChunkSums {
 public:
  ChunkSums(const Problem& p, const Cut& cut) : cut_(cut), weights_(cut.groups) {
    constexpr int64_t kMost = kTokens + kPanel + kApart;
    memory_.resize(cut.groups * Sums::Size(kMost));
    for (int64_t group = 0; group < cut.groups; ++group) {
      weights_[group] = p.WeightSum(From(group), To(p, group));
    }
  }
  int64_t From(int64_t group) const { return group * cut_.tiles * cut_.rows; }
  int64_t To(const Problem& p, int64_t group) const { return std::min(p.classes, From(group + 1)); }

  template <typename Element>
  void Compute(ffi::ThreadPool& pool, const Problem& p, const Chunk<Element>& chunk, float* logits) {
    sums_.clear();
    for (int64_t group = 0; group < cut_.groups; ++group) {
      sums_.emplace_back(memory_.data() + group * Sums::Size(chunk.step), chunk.step);
    }
    tftoolkit::ParallelFor(pool, cut_.groups, [&](int64_t group) {
      ForwardGroup(p, chunk, cut_, From(group), To(p, group), logits, sums_[group]);
    });
  }
  template <typename Element>
  Loss Token(const Problem& p, const Chunk<Element>& chunk, int64_t lane) const {
    const int64_t label = chunk.tokens[lane].label;
    return Combine(p, sums_, weights_, lane, label, label / (cut_.tiles * cut_.rows));
  }
  const Sums& group(int64_t i) const { return sums_[i]; }

 private:
  Cut cut_;
  std::vector<float> memory_;
  std::vector<double> weights_;
  std::vector<Sums> sums_;
};

template <typename Element>
void Forward(ffi::ThreadPool& pool, const Problem& p, const Losses& losses) {
  std::fill_n(losses.loss, p.rows, 0.0f);
  std::fill_n(losses.lse, p.rows, 0.0f);
  if (p.tokens.empty()) return;
  const Cut cut(p);
  std::vector<float> memory(Chunk<Element>::Size(p));
  ChunkSums sums(p, cut);
  for (int64_t first = 0; first < static_cast<int64_t>(p.tokens.size()); first += kTokens) {
    Chunk<Element> chunk(p, first, memory.data());
    chunk.PackInputs(p, false);
    sums.Compute(pool, p, chunk, nullptr);
    for (int64_t i = 0; i < chunk.count; ++i) {
      const Loss loss = sums.Token(p, chunk, i);
      losses.loss[chunk.tokens[i].row] = static_cast<float>(loss.value);
      losses.lse[chunk.tokens[i].row] = static_cast<float>(loss.lse());
    }
  }
}

// What the losses of a chunk make of the gradients by them; returns the sum of d_loss times the losses.
template <typename Element>
double SetFactors(const Problem& p, const Chunk<Element>& chunk, const ChunkSums& sums, const Gradients& g,
                  const ChunkFactors& f) {
  std::fill_n(f.shift, ChunkFactors::Size(chunk.step), 0.0f);
  std::fill_n(f.shift + chunk.count, chunk.lanes - chunk.count, 1e38f);  // lanes without a token have powers of 0
  double total = 0;
  for (int64_t i = 0; i < chunk.count; ++i) {
    const Loss loss = sums.Token(p, chunk, i);
    const auto [row, label] = chunk.tokens[i];
    const double d_loss = g.share * g.d_loss[row];
    total += d_loss * loss.value;
    const Factors found = FactorsOf(p, loss, d_loss, g.d_lse[row], p.ClassWeight(label), p.weight_sum);
    f.shift[i] = found.shift;
    f.inverse[i] = found.inverse;
    f.scale[i] = found.scale;
    f.even[i] = found.even;
    f.own[i] = found.own;
  }
  return total;
}

// Adds up what the groups gave to the gradient by the inputs, in their order, and stores it.
template <typename Element>
void StoreInputs(ffi::ThreadPool& pool, const Problem& p, const Chunk<Element>& chunk, float* parts, int64_t groups,
                 const Gradients& g) {
  const int64_t size = chunk.lanes * p.depth, of_panel = kPanel * p.depth;
  tftoolkit::ParallelFor(pool, chunk.lanes / kPanel, [&](int64_t panel) {
    float* sum = parts + panel * of_panel;
    for (int64_t group = 1; group < groups; ++group) {
      for (int64_t k = 0; k < of_panel; ++k) sum[k] += sum[group * size + k];
    }
    for (int64_t i = panel * kPanel; i < std::min((panel + 1) * kPanel, chunk.count); ++i) {
      StoreRow(p.type, sum + i % kPanel, kPanel, p.depth, 1.0f, g.dinputs, chunk.tokens[i].row * p.depth);
    }
  });
}

template <typename Element>
void Backward(ffi::ThreadPool& pool, const Problem& p, Gradients& g) {
  const int64_t size = p.type == tftoolkit::FloatType::kFloat ? 4 : 2, count = static_cast<int64_t>(p.tokens.size());
  g.total = 0;
  if (count < p.rows) std::memset(g.dinputs, 0, p.rows * p.depth * size);
  if (count == 0) {
    std::memset(g.dweight, 0, p.classes * p.depth * size);
    if (g.dbias != nullptr) std::memset(g.dbias, 0, p.classes * size);
    return;
  }
  const Cut cut(p);
  const int64_t most = std::min(kTokens, Panels(count) * kPanel);  // lanes
  std::vector<float> memory(Chunk<Element>::Size(p)), factor_memory(ChunkFactors::Size(most + kApart));
  ChunkSums sums(p, cut);
  // Not filled: each page is written to before it is read.
  const std::unique_ptr<float[]> logits(new float[p.classes * (most + kApart)]);
  const std::unique_ptr<float[]> dinputs(new float[cut.groups * most * p.depth]);
  std::unique_ptr<float[]> weight_sums, bias_sums;  // float32 gradients are summed up where they belong
  WeightGradient into{nullptr, nullptr, true, false};
  if (size == 4) {
    into.weight = static_cast<float*>(g.dweight);
    into.bias = static_cast<float*>(g.dbias);
  } else if (count > kTokens) {
    weight_sums.reset(new float[p.classes * p.depth]);
    bias_sums.reset(new float[p.classes]);
    into.weight = weight_sums.get();
    into.bias = bias_sums.get();
  }
  for (int64_t first = 0; first < count; first += kTokens) {
    Chunk<Element> chunk(p, first, memory.data());
    chunk.PackInputs(p, true);
    sums.Compute(pool, p, chunk, logits.get());
    const ChunkFactors factors(factor_memory.data(), chunk.step);
    g.total += SetFactors(p, chunk, sums, g, factors);
    into.first = first == 0;
    into.last = first + kTokens >= count;
    tftoolkit::ParallelFor(pool, cut.groups, [&](int64_t group) {
      BackwardGroup(p, chunk, cut, sums.From(group), sums.To(p, group), logits.get(), factors, sums.group(group), g,
                    into, dinputs.get() + group * chunk.lanes * p.depth);
    });
    StoreInputs(pool, p, chunk, dinputs.get(), cut.groups, g);
  }
}
