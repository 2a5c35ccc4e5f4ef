// The passes over tiles of the logits; once for each instruction set (see gemm.h).
//
// Lanes are tokens: logits are [class][token], so the largest, the sum and the gradient are vertical operations, and
// the gradient is already in the form in which the products that follow read it.

constexpr int64_t kTokens = 256;              // in a chunk
constexpr int64_t kGroups = 16;               // of classes, each a task: from the shape alone, as is the order of sums
constexpr int64_t kTileElements = 144 * 256;  // of the weight; with gradients and logits a tile fits the second cache
constexpr int64_t kDepth = 256;               // of a product at a time, so that its panel stays in the first cache
constexpr int64_t kApart = 16;                // floats between rows, which else were mapped to few lines of the cache

// How the classes are cut: tiles of `rows` classes, groups of `tiles` tiles.
struct Cut {
  int64_t rows, tiles, groups;

  explicit Cut(const Problem& p) {
    rows = std::clamp<int64_t>(kTileElements / std::max<int64_t>(1, p.depth) / 24 * 24, 24, 192);
    const int64_t all = (p.classes + rows - 1) / rows;
    tiles = std::max<int64_t>(1, (all + kGroups - 1) / kGroups);
    groups = (all + tiles - 1) / tiles;
  }
};

// What the classes of a group add up to for each token of a chunk. `total` is the sum of weight * (logit - shift).
struct Sums {
  float *shift, *sum, *total, *own;

  static int64_t Size(int64_t step) { return 4 * step; }
  Sums(float* memory, int64_t step)
      : shift(memory), sum(memory + step), total(memory + 2 * step), own(memory + 3 * step) {}
};

// Up to kTokens tokens and what is made of them.
struct Chunk {
  const Token* tokens;
  int64_t count, lanes, step;  // step: floats from class to class in the logits
  float *by_depth, *by_token;  // inputs as panels of tokens [panel][depth][kPanel] and of depth [panel][token][kPanel]

  Chunk(const Problem& p, int64_t first, float* memory)
      : tokens(p.tokens.data() + first),
        count(std::min<int64_t>(kTokens, static_cast<int64_t>(p.tokens.size()) - first)),
        lanes(Panels(count) * kPanel),
        step(lanes + kApart),
        by_depth(memory),
        by_token(memory + lanes * p.depth) {}
  static int64_t Size(const Problem& p) {
    const int64_t lanes = Panels(std::min<int64_t>(kTokens, static_cast<int64_t>(p.tokens.size()))) * kPanel;
    return lanes * (p.depth + Panels(p.depth) * kPanel);
  }

  void PackInputs(const Problem& p, bool both) {
    thread_local tftoolkit::Scratch scratch;
    float* row = scratch.Get(p.depth);
    std::fill_n(by_depth, lanes * p.depth, 0.0f);
    if (both) std::fill_n(by_token, lanes * Panels(p.depth) * kPanel, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      Pack(p.type, p.inputs, tokens[i].row * p.depth, 0, 1, p.depth, row, 0);
      float* lane = by_depth + i / kPanel * kPanel * p.depth + i % kPanel;
      for (int64_t k = 0; k < p.depth; ++k) lane[k * kPanel] = row[k];
      for (int64_t k = 0; both && k < p.depth; k += kPanel) {
        std::copy_n(row + k, std::min<int64_t>(kPanel, p.depth - k), by_token + k * lanes + i * kPanel);
      }
    }
  }
};

// The logits of `n` classes from `first` on and one panel of tokens, `step` floats from class to class.
inline void Logits(const Problem& p, const float* weight, int64_t weight_step, const float* inputs, int64_t first,
                   int64_t n, float* logits, int64_t step) {
  Product<Into::kStore>(n, 1, std::min(kDepth, p.depth), {weight, weight_step, 1}, inputs, kPanel, logits, step);
  for (int64_t k = kDepth; k < p.depth; k += kDepth) {
    Product<Into::kAdd>(n, 1, std::min(kDepth, p.depth - k), {weight + k, weight_step, 1}, inputs + k * kPanel, kPanel,
                        logits, step);
  }
  if (p.bias != nullptr) {
    tftoolkit::WithType(p.type, [&](auto zero) {
      const auto* bias = static_cast<const decltype(zero)*>(p.bias) + first;
      for (int64_t c = 0; c < n; ++c) {
        for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
          StoreVector(logits + c * step + lane, LoadVector(logits + c * step + lane) + tftoolkit::Load(bias[c]));
        }
      }
    });
  }
  if (p.softcap > 0) {
    const float inverse = 1 / p.softcap;
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
        StoreVector(logits + c * step + lane, Tanh(LoadVector(logits + c * step + lane) * inverse) * p.softcap);
      }
    }
  }
}

// One step of the online softmax (Milakov & Gimelshein 2018) for the logits of `n` classes; `weight_before` is the sum
// of the weights of the classes before.
inline void AddTo(const Problem& p, const Sums& sums, int64_t panel, int64_t first, int64_t n, const float* logits,
                  int64_t step, float weight_before) {
  for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
    const float* column = logits + lane;
    const int64_t at = panel * kPanel + lane;
    const Vector before = LoadVector(sums.shift + at);
    Vector top = Broadcast(kMinusInfinity);
    for (int64_t c = 0; c < n; ++c) {
      const Vector logit = LoadVector(column + c * step);
      top = logit > top ? logit : top;
    }
    const Vector sum_before = LoadVector(sums.sum + at);
    top = (sum_before > 0.0f) & (before > top) ? before : top;  // until a term is not 0, the shift says nothing
    const Vector shift = (top > kMinusInfinity) & (top < -kMinusInfinity) ? top : Broadcast(0.0f);
    Vector sum = {};
    for (int64_t c = 0; c < n; ++c) sum += Exp2((LoadVector(column + c * step) - shift) * kLog2E);
    sum = top == -kMinusInfinity ? top : sum;  // of what Exp2 makes nothing
    const Vector kept = sum_before > 0.0f ? sum_before * Exp2((before - shift) * kLog2E) : sum_before;
    StoreVector(sums.sum + at, kept + sum);
    StoreVector(sums.shift + at, shift);
    if (p.smoothing == 0) continue;
    Vector total = LoadVector(sums.total + at) + weight_before * (before - shift);
    for (int64_t c = 0; c < n; ++c) total += (LoadVector(column + c * step) - shift) * p.ClassWeight(first + c);
    StoreVector(sums.total + at, total);
  }
}

// The sums of classes [from, to) for the tokens of a chunk, and, unless null, their logits, [class][step].
void ForwardGroup(const Problem& p, const Chunk& chunk, const Cut& cut, int64_t from, int64_t to, float* logits,
                  const Sums& sums) {
  thread_local tftoolkit::Scratch scratch;
  const int64_t weight_step = p.depth + kApart;
  tftoolkit::Parts parts;
  const int64_t weight_at = parts.Add(cut.rows * weight_step), tile_at = parts.Add(cut.rows * kPanel);
  float* memory = scratch.Get(parts.size());
  float *weight = memory + weight_at, *tile = memory + tile_at;
  std::fill_n(sums.shift, Sums::Size(chunk.step), 0.0f);
  double weight_before = 0;
  for (int64_t first = from; first < to; first += cut.rows) {
    const int64_t n = std::min(cut.rows, to - first);
    Pack(p.type, p.weight, first * p.depth, p.depth, n, p.depth, weight, weight_step);
    for (int64_t panel = 0; panel < chunk.lanes / kPanel; ++panel) {
      float* at = logits == nullptr ? tile : logits + first * chunk.step + panel * kPanel;
      const int64_t step = logits == nullptr ? kPanel : chunk.step;
      Logits(p, weight, weight_step, chunk.by_depth + panel * kPanel * p.depth, first, n, at, step);
      AddTo(p, sums, panel, first, n, at, step, static_cast<float>(weight_before));
      for (int64_t i = panel * kPanel; i < std::min((panel + 1) * kPanel, chunk.count); ++i) {
        const int64_t own = chunk.tokens[i].label - first;
        if (own >= 0 && own < n) sums.own[i] = at[own * step + i % kPanel];
      }
    }
    weight_before += p.WeightSum(first, first + n);
  }
}

// The factors of all tokens of a chunk.
struct ChunkFactors {
  float *shift, *inverse, *scale, *even, *own;

  static int64_t Size(int64_t step) { return 5 * step; }
  ChunkFactors(float* memory, int64_t step)
      : shift(memory),
        inverse(memory + step),
        scale(memory + 2 * step),
        even(memory + 3 * step),
        own(memory + 4 * step) {}
};

// The derivative of softcap * tanh(x / softcap), from its value.
template <typename Value>
TK_INLINE Value CapSlope(const Problem& p, Value logit) {
  const Value part = logit * (1 / p.softcap);
  return 1.0f - part * part;
}

// The gradient by the products (before bias and softcap nothing happens to them) in place of the logits of `n` classes.
inline void LogitGradients(const Problem& p, const Chunk& chunk, const ChunkFactors& f, const Sums& sums, int64_t first,
                           int64_t n, float* logits) {
  for (int64_t lane = 0; lane < chunk.lanes; lane += kLanes) {
    const Vector shift = LoadVector(f.shift + lane), scale = LoadVector(f.scale + lane) * LoadVector(f.inverse + lane),
                 even = LoadVector(f.even + lane);
    for (int64_t c = 0; c < n; ++c) {
      float* at = logits + c * chunk.step + lane;
      const Vector logit = LoadVector(at);
      Vector gradient = Exp2((logit - shift) * kLog2E) * scale - even * p.ClassWeight(first + c);
      if (p.softcap > 0) gradient *= CapSlope(p, logit);
      StoreVector(at, gradient);
    }
  }
  for (int64_t i = 0; i < chunk.count; ++i) {
    const int64_t own = chunk.tokens[i].label - first;
    if (own < 0 || own >= n) continue;
    const float slope = p.softcap > 0 ? CapSlope(p, sums.own[i]) : 1.0f;
    logits[own * chunk.step + i] -= f.own[i] * slope;
  }
}

// Where the gradient by the weight is summed up over chunks: in float32; rounded when the last one is in.
struct WeightGradient {
  float *weight, *bias;  // bias may be null
  bool first, last;
};

// Puts what a chunk adds to the gradients by the weight and the bias of classes [begin, begin + n) where it belongs.
inline void StoreWeightGradient(const Problem& p, const Gradients& g, const WeightGradient& to, int64_t begin,
                                int64_t n, float* weight, int64_t step, float* bias) {
  for (int64_t c = 0; c < n; ++c) {
    float *row = weight + c * step, *sum = to.weight == nullptr ? nullptr : to.weight + (begin + c) * p.depth;
    if (!to.first) {
      for (int64_t k = 0; k < p.depth; ++k) row[k] += sum[k];
      if (g.dbias != nullptr) bias[c] += to.bias[begin + c];
    }
    if (to.last) {
      StoreRow(p.type, row, 1, p.depth, 1.0f, g.dweight, (begin + c) * p.depth);
      if (g.dbias != nullptr) StoreRow(p.type, bias + c, 1, 1, 1.0f, g.dbias, begin + c);
    } else {
      std::copy_n(row, p.depth, sum);
      if (g.dbias != nullptr) to.bias[begin + c] = bias[c];
    }
  }
}

// From the logits of classes [from, to) of a chunk to what they give to the gradients: that by the inputs to
// `dinputs`, [panel][depth][kPanel].
void BackwardGroup(const Problem& p, const Chunk& chunk, const Cut& cut, int64_t from, int64_t to, float* logits,
                   const ChunkFactors& factors, const Sums& sums, const Gradients& g, const WeightGradient& into,
                   float* dinputs) {
  thread_local tftoolkit::Scratch scratch;
  const int64_t weight_step = p.depth + kApart, wide = Panels(p.depth) * kPanel, dweight_step = wide + kApart;
  tftoolkit::Parts parts;
  const int64_t weight_at = parts.Add(cut.rows * weight_step), dweight_at = parts.Add(cut.rows * dweight_step),
                dbias_at = parts.Add(cut.rows);
  float* memory = scratch.Get(parts.size());
  float *weight = memory + weight_at, *dweight = memory + dweight_at, *dbias = memory + dbias_at;
  std::fill_n(dinputs, chunk.lanes * p.depth, 0.0f);
  for (int64_t first = from; first < to; first += cut.rows) {
    const int64_t n = std::min(cut.rows, to - first);
    float* gradient = logits + first * chunk.step;
    LogitGradients(p, chunk, factors, sums, first, n, gradient);
    Pack(p.type, p.weight, first * p.depth, p.depth, n, p.depth, weight, weight_step);
    for (int64_t panel = 0; panel < chunk.lanes / kPanel; ++panel) {
      Product<Into::kAdd>(p.depth, 1, n, {weight, 1, weight_step}, gradient + panel * kPanel, chunk.step,
                          dinputs + panel * kPanel * p.depth, kPanel);
    }
    for (int64_t k = 0; k < wide; k += kPanel) {
      Product<Into::kStore>(n, 1, chunk.lanes, {gradient, chunk.step, 1}, chunk.by_token + k * chunk.lanes, kPanel,
                            dweight + k, dweight_step);
    }
    for (int64_t c = 0; c < n && g.dbias != nullptr; ++c) {
      Vector sum = {};
      for (int64_t lane = 0; lane < chunk.lanes; lane += kLanes) sum += LoadVector(gradient + c * chunk.step + lane);
      float all = 0;
      for (int lane = 0; lane < kLanes; ++lane) all += sum[lane];
      dbias[c] = all;
    }
    StoreWeightGradient(p, g, into, first, n, dweight, dweight_step, dbias);
  }
}
