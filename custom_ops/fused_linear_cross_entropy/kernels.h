// The passes over tiles of the logits; once for each instruction set (see gemm.h).
//
// Lanes are tokens: logits are [class][token], so the largest, the sum and the gradient are vertical operations, and
// the gradient is already in the form in which the products that follow read it. An Element of the products is a float,
// or, of bfloat16 tensors where the processor multiplies them, a Pair: then the gradient is rounded to bfloat16 as
// well.

constexpr int64_t kTokens = 128;              // in a chunk
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
template <typename Element>
struct Chunk {
  const Token* tokens;
  int64_t count, lanes, step;  // step: floats from class to class in the logits
  Element *by_depth,
      *by_token;  // inputs as panels of tokens [panel][depth][kPanel] and of depth [panel][token][kPanel]

  Chunk(const Problem& p, int64_t first, float* memory)
      : tokens(p.tokens.data() + first),
        count(std::min<int64_t>(kTokens, static_cast<int64_t>(p.tokens.size()) - first)),
        lanes(Panels(count) * kPanel),
        step(lanes + kApart),
        by_depth(reinterpret_cast<Element*>(memory)),
        by_token(by_depth + lanes * Steps<Element>(p.depth)) {}
  static int64_t Size(const Problem& p) {
    const int64_t lanes = Panels(std::min<int64_t>(kTokens, static_cast<int64_t>(p.tokens.size()))) * kPanel;
    return lanes * Steps<Element>(p.depth) + Steps<Element>(lanes) * Panels(p.depth) * kPanel;
  }
  const Element* Lanes(const Problem& p, int64_t panel) const {
    return by_depth + panel * kPanel * Steps<Element>(p.depth);
  }

  void PackInputs(const Problem& p, bool both) {
    const int64_t steps = Steps<Element>(p.depth), of_panel = Steps<Element>(lanes) * kPanel;
    const auto place = [&](int64_t i) { return tokens[i].row * p.depth; };
    std::fill_n(by_depth, lanes * steps, Element{});
    for (int64_t i = 0; i < count; ++i) {
      PackLane(p.type, p.inputs, place(i), p.depth, 1.0f, by_depth + i / kPanel * kPanel * steps + i % kPanel, kPanel);
    }
    if (!both) return;
    std::fill_n(by_token, Panels(p.depth) * of_panel, Element{});
    for (int64_t k = 0; k < p.depth; k += kPanel) {
      PackSteps(
          p.type, p.inputs, [&](int64_t i) { return place(i) + k; }, count, std::min<int64_t>(kPanel, p.depth - k),
          by_token + k / kPanel * of_panel, kPanel);
    }
  }
};

// The logits of `n` classes from `first` on and one panel of tokens, `step` floats from class to class.
template <typename Element>
void Logits(const Problem& p, const Element* weight, int64_t weight_step, const Element* inputs, int64_t first,
            int64_t n, float* logits, int64_t step) {
  const int64_t steps = Steps<Element>(p.depth);
  Product<Into::kStore>(n, 1, std::min(kDepth, steps), {weight, weight_step, 1}, inputs, kPanel, logits, step);
  for (int64_t k = kDepth; k < steps; k += kDepth) {
    Product<Into::kAdd>(n, 1, std::min(kDepth, steps - k), {weight + k, weight_step, 1}, inputs + k * kPanel, kPanel,
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
template <typename Element>
void ForwardGroup(const Problem& p, const Chunk<Element>& chunk, const Cut& cut, int64_t from, int64_t to,
                  float* logits, const Sums& sums) {
  thread_local tftoolkit::Scratch scratch;
  const int64_t weight_step = Steps<Element>(p.depth) + kApart;
  tftoolkit::Parts parts;
  const int64_t weight_at = parts.Add(cut.rows * weight_step), tile_at = parts.Add(cut.rows * kPanel);
  float *memory = scratch.Get(parts.size()), *tile = memory + tile_at;
  auto* weight = reinterpret_cast<Element*>(memory + weight_at);
  std::fill_n(sums.shift, Sums::Size(chunk.step), 0.0f);
  double weight_before = 0;
  for (int64_t first = from; first < to; first += cut.rows) {
    const int64_t n = std::min(cut.rows, to - first);
    PackRows(p.type, p.weight, first * p.depth, p.depth, n, p.depth, weight, weight_step);
    for (int64_t panel = 0; panel < chunk.lanes / kPanel; ++panel) {
      float* at = logits == nullptr ? tile : logits + first * chunk.step + panel * kPanel;
      const int64_t step = logits == nullptr ? kPanel : chunk.step;
      Logits(p, weight, weight_step, chunk.Lanes(p, panel), first, n, at, step);
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
template <typename Element>
void LogitGradients(const Problem& p, const Chunk<Element>& chunk, const ChunkFactors& f, const Sums& sums,
                    int64_t first, int64_t n, float* logits) {
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
template <typename Element>
void BackwardGroup(const Problem& p, const Chunk<Element>& chunk, const Cut& cut, int64_t from, int64_t to,
                   float* logits, const ChunkFactors& factors, const Sums& sums, const Gradients& g,
                   const WeightGradient& into, float* dinputs) {
  thread_local tftoolkit::Scratch scratch;
  const int64_t weight_step = p.depth + kApart, wide = Panels(p.depth) * kPanel, dweight_step = wide + kApart;
  const bool pairs = std::is_same_v<Element, Pair>;
  tftoolkit::Parts parts;
  const int64_t weight_at = parts.Add(Steps<Element>(cut.rows) * weight_step),
                dweight_at = parts.Add(cut.rows * dweight_step), dbias_at = parts.Add(cut.rows),
                room_at = parts.Add(pairs ? Steps<Element>(cut.rows) * chunk.step : 0);
  float *memory = scratch.Get(parts.size()), *dweight = memory + dweight_at, *dbias = memory + dbias_at;
  auto* weight = reinterpret_cast<Element*>(memory + weight_at);
  std::fill_n(dinputs, chunk.lanes * p.depth, 0.0f);
  for (int64_t first = from; first < to; first += cut.rows) {
    const int64_t n = std::min(cut.rows, to - first);
    float* gradient = logits + first * chunk.step;
    LogitGradients(p, chunk, factors, sums, first, n, gradient);
    for (int64_t c = 0; c < n && g.dbias != nullptr; ++c) {
      Vector sum = {};
      for (int64_t lane = 0; lane < chunk.lanes; lane += kLanes) sum += LoadVector(gradient + c * chunk.step + lane);
      float all = 0;
      for (int lane = 0; lane < kLanes; ++lane) all += sum[lane];
      dbias[c] = all;
    }
    const auto place = [&](int64_t c) { return (first + c) * p.depth; };
    PackSteps(p.type, p.weight, place, n, p.depth, weight, weight_step);
    const Element* by_class = AsSteps<Element>(gradient, n, chunk.lanes, chunk.step, memory + room_at);
    for (int64_t panel = 0; panel < chunk.lanes / kPanel; ++panel) {
      Product<Into::kAdd>(p.depth, 1, Steps<Element>(n), {weight, 1, weight_step}, by_class + panel * kPanel,
                          chunk.step, dinputs + panel * kPanel * p.depth, kPanel);
    }
    const Element* by_token = AsRows<Element>(gradient, n, chunk.lanes, chunk.step);
    const int64_t steps = Steps<Element>(chunk.lanes);
    for (int64_t k = 0; k < wide; k += kPanel) {
      Product<Into::kStore>(n, 1, steps, {by_token, chunk.step, 1}, chunk.by_token + k * steps, kPanel, dweight + k,
                            dweight_step);
    }
    StoreWeightGradient(p, g, into, first, n, dweight, dweight_step, dbias);
  }
}
