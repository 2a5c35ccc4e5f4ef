// The two passes over tiles; once for each instruction set (see gemm.h).
//
// Lanes are queries: a panel holds kPanel queries side by side, scores are [key][query], so the largest score, the sum
// and the mask are vertical operations, and the powers are already in the form in which the second product reads them.
//
// An Element of the products is a float, or, of bfloat16 tensors where the processor multiplies them, a Pair: then the
// powers, and the gradients by the scores, are rounded to bfloat16 as well, which is what a product of such tensors
// does.

constexpr int64_t kQueries = 256;     // in a block of the forward pass
constexpr int64_t kKeys = 192;        // in a tile of the forward pass
constexpr int64_t kBackQueries = 64;  // in a block of the backward pass
constexpr int64_t kBackKeys = 48;     // in a tile of the backward pass: 64 x 48 scores and their gradients, 24 kB
constexpr int64_t kBackElements = 768 * 64;  // of k in a block of the backward pass

// Scores are products of scaled queries, or, of pairs, scaled products.
template <typename Element>
constexpr Into kScores = std::is_same_v<Element, Pair> ? Into::kTimes : Into::kStore;

float QueryScale(const Problem& p) { return p.softcap > 0 ? p.scale / p.softcap : p.scale * kLog2E; }

// What a block of rows has seen, not yet divided by the sum: acc is [panels][value_depth][kPanel].
struct Partial {
  float *largest, *sum, *acc;

  static int64_t Size(int64_t rows, int64_t value_depth) { return Panels(rows) * kPanel * (value_depth + 2); }
  Partial(float* memory, int64_t panels)
      : largest(memory), sum(memory + panels * kPanel), acc(memory + 2 * panels * kPanel) {}
};

// Rows [row, row + count) of a sequence and a head of k and v, over the keys [from, to).
template <typename Element>
void ForwardBlock(const Problem& p, const Sequence& s, int64_t kv, int64_t row, int64_t count, int64_t from, int64_t to,
                  float* result) {
  thread_local Scratch scratch;
  thread_local Lanes lanes;
  lanes.Set(p, s, kv, row, count);
  const int64_t d = Steps<Element>(p.depth), e = p.value_depth, panels = lanes.panels;
  Parts parts;
  const int64_t q_at = parts.Add(panels * kPanel * d), k_at = parts.Add(kKeys * d), v_at = parts.Add(kKeys * e),
                s_at = parts.Add(kKeys * kPanel), alpha_at = parts.Add(kPanel), scale_at = parts.Add(kPanel);
  float* memory = scratch.Get(parts.size());
  float *scores = memory + s_at, *alpha = memory + alpha_at, *scale = memory + scale_at;
  auto *q = reinterpret_cast<Element*>(memory + q_at), *k = reinterpret_cast<Element*>(memory + k_at),
       *v = reinterpret_cast<Element*>(memory + v_at);
  const Partial out(result, panels);
  std::fill_n(out.largest, panels * kPanel, kMinusInfinity);
  std::fill_n(out.sum, panels * kPanel * (e + 1), 0.0f);  // and acc behind it
  std::fill_n(q + (panels - 1) * kPanel * d, kPanel * d, Element{});
  std::fill_n(scale, kPanel, QueryScale(p));
  for (int64_t i = 0; i < count; ++i) {
    PackLane(p.type, p.q, p.place(s, kv, row + i) * p.depth, p.depth, QueryScale(p),
             q + i / kPanel * kPanel * d + i % kPanel, kPanel);
  }
  from = std::max(from, lanes.from);
  to = std::min(to, lanes.to);
  for (int64_t key = from; key < to; key += kKeys) {
    const int64_t n = std::min(kKeys, to - key);
    PackRows(p.type, p.k, p.kv_place(s, kv, key) * p.depth, p.kv_heads * p.depth, n, p.depth, k, d);
    const auto place_of = [&](int64_t r) { return p.kv_place(s, kv, key + r) * e; };
    PackSteps(p.type, p.v, place_of, n, e, v, e);
    for (int64_t panel = 0; panel < panels; ++panel) {
      // Of the tile, what the panel sees: at a causal mask's edge half of it.
      int64_t first = std::max(key, lanes.first[panel]);
      const int64_t last = std::min(key + n, lanes.last[panel]);
      if (last > first) first -= (first - key) % kDepthOf<Element>;
      const int64_t seen = last - first, at = first - key;
      if (seen <= 0) continue;
      Product<kScores<Element>>(seen, 1, d, {k + at * d, d, 1}, q + panel * kPanel * d, kPanel, scores, kPanel, scale);
      Scores(p, lanes, panel, first, seen, scores, kPanel);
      SoftmaxStep(scores, seen, out.largest + panel * kPanel, out.sum + panel * kPanel, alpha);
      const Element* powers = AsSteps<Element>(scores, seen, kPanel, kPanel, scores);
      Product<Into::kScale>(e, 1, Steps<Element>(seen), {v + at / kDepthOf<Element> * e, 1, e}, powers, kPanel,
                            out.acc + panel * kPanel * e, kPanel, alpha);
    }
  }
}

// Puts parts of the keys together, in their order, into the first.
inline void Combine(float* results, int64_t splits, int64_t size, int64_t panels, int64_t value_depth) {
  const Partial all(results, panels);
  for (int64_t split = 1; split < splits; ++split) {
    const Partial one(results + split * size, panels);
    for (int64_t lane = 0; lane < panels * kPanel; lane += kLanes) {
      const Vector a = LoadVector(all.largest + lane), b = LoadVector(one.largest + lane);
      const Vector top = a > b ? a : b, base = top == kMinusInfinity ? Broadcast(0.0f) : top;
      const Vector left = Exp2(a - base), right = Exp2(b - base);
      StoreVector(all.largest + lane, top);
      StoreVector(all.sum + lane, LoadVector(all.sum + lane) * left + LoadVector(one.sum + lane) * right);
      const int64_t begin = lane / kPanel * kPanel * value_depth + lane % kPanel;
      for (int64_t i = 0; i < value_depth; ++i) {
        float* to = all.acc + begin + i * kPanel;
        StoreVector(to, LoadVector(to) * left + LoadVector(one.acc + begin + i * kPanel) * right);
      }
    }
  }
}

void StoreBlock(const Problem& p, const Sequence& s, int64_t kv, int64_t row, int64_t count, float* result,
                const Outputs& outputs) {
  const Partial in(result, Panels(count));
  const int64_t e = p.value_depth;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = p.place(s, kv, row + i);
    const bool empty = in.sum[i] == 0;
    const float inverse = empty ? 0.0f : 1.0f / in.sum[i];
    outputs.largest[place] = empty ? 0.0f : in.sum[i] == in.sum[i] ? in.largest[i] : in.sum[i];  // NaN if a score is
    outputs.inverse[place] = inverse;
    if (outputs.lse != nullptr) {
      outputs.lse[place] = empty ? kMinusInfinity : in.largest[i] * (1 / kLog2E) + std::log(in.sum[i]);
    }
    const float* acc = in.acc + i / kPanel * kPanel * e + i % kPanel;
    StoreRow(p.type, acc, kPanel, e, inverse, outputs.o, place * e);
  }
}

// delta of a panel of the rows of [rows, heads]: in the order of the products that make dp, so that ds of a query with
// one weight of 1 is exactly 0, as it should be.
template <typename Element>
void DeltaPanel(const Problem& p, const Gradients& g, int64_t row, float* delta) {
  thread_local Scratch scratch;
  const int64_t e = Steps<Element>(p.value_depth), count = std::min<int64_t>(kPanel, g.rows - row);
  auto *o = reinterpret_cast<Element*>(scratch.Get(2 * e * kPanel)), *d_o = o + e * kPanel;
  std::fill_n(o, 2 * e * kPanel, Element{});
  for (int64_t i = 0; i < count; ++i) {
    PackLane(p.type, g.o, (row + i) * p.value_depth, p.value_depth, 1.0f, o + i, kPanel);
    PackLane(p.type, g.d_o, (row + i) * p.value_depth, p.value_depth, 1.0f, d_o + i, kPanel);
  }
  for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
    Vector sum = {};
    for (int64_t i = 0; i < e; ++i) {
      MultiplyAdd(sum, LoadVector(o + i * kPanel + lane), LoadVector(d_o + i * kPanel + lane));
    }
    StoreVector(delta + lane, sum);
  }
  if (g.dlse == nullptr) return;
  for (int64_t i = 0; i < count; ++i) delta[i] -= g.dlse[row + i];
}

// What the backward pass of `n` keys works with; d_wide and e_wide are depths in whole panels. Queries are taken kStep
// at a time: "by lane" they are the columns of an operand, [depth][query], in "steps" its depth.
template <typename Element>
struct BackMemory {
  static constexpr int64_t kStep = kBackQueries;
  int64_t d_wide, e_wide;
  Element *k, *v, *k_steps, *q_by_lane, *do_by_lane, *q_steps, *do_steps;
  float *dk, *dv, *dq, *powers, *ds, *slope, *room, *largest, *inverse, *delta, *scale;

  BackMemory(const Problem& p, int64_t n, Scratch& scratch)
      : d_wide(Panels(p.depth) * kPanel), e_wide(Panels(p.value_depth) * kPanel) {
    const int64_t d = Steps<Element>(p.depth), e = Steps<Element>(p.value_depth);
    const auto each = [&](const auto& part) {
      part(k, n * d);
      part(v, n * e);
      part(q_by_lane, d * kStep);
      part(do_by_lane, e * kStep);
      part(q_steps, Steps<Element>(kStep) * d_wide);
      part(do_steps, Steps<Element>(kStep) * e_wide);
      part(dk, n * d_wide);
      part(dv, n * e_wide);
      part(dq, p.depth * kStep);
      for (float** tile : {&powers, &ds, &slope}) part(*tile, kBackKeys * kStep);
      for (float** row : {&largest, &inverse, &delta, &scale}) part(*row, kStep);
      if constexpr (std::is_same_v<Element, Pair>) {
        part(k_steps, Steps<Element>(n) * p.depth);
        part(room, kBackKeys * kStep);
      }
    };
    Parts sizes, places;
    each([&](auto&, int64_t size) { sizes.Add(size); });
    float* memory = scratch.Get(sizes.size());
    each([&](auto& to, int64_t size) { to = reinterpret_cast<std::decay_t<decltype(to)>>(memory + places.Add(size)); });
    if constexpr (std::is_same_v<Element, float>) k_steps = k, room = nullptr;
    std::fill_n(dk, n * d_wide, 0.0f);
    std::fill_n(dv, n * e_wide, 0.0f);
    std::fill_n(scale, kPanel, QueryScale(p));
  }

  // Queries [row, row + count).
  void PackQueries(const Problem& p, const Sequence& s, int64_t kv, int64_t row, int64_t count, const Gradients& g) {
    const int64_t d = p.depth, e = p.value_depth;
    std::fill_n(q_by_lane, Steps<Element>(d) * kStep, Element{});
    std::fill_n(do_by_lane, Steps<Element>(e) * kStep, Element{});
    std::fill_n(q_steps, Steps<Element>(kStep) * d_wide, Element{});
    std::fill_n(do_steps, Steps<Element>(kStep) * e_wide, Element{});
    std::fill_n(dq, d * kStep, 0.0f);
    for (float* of_row : {largest, inverse, delta}) std::fill_n(of_row, kStep, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = p.place(s, kv, row + i);
      PackLane(p.type, p.q, place * d, d, QueryScale(p), q_by_lane + i, kStep);
      PackLane(p.type, g.d_o, place * e, e, 1.0f, do_by_lane + i, kStep);
      largest[i] = g.largest[place];
      inverse[i] = g.inverse[place];
      delta[i] = g.delta[place];
    }
    PackSteps(
        p.type, p.q, [&](int64_t i) { return p.place(s, kv, row + i) * d; }, count, d, q_steps, d_wide);
    PackSteps(
        p.type, g.d_o, [&](int64_t i) { return p.place(s, kv, row + i) * e; }, count, e, do_steps, e_wide);
  }
};

// From scores and dp of lanes [from, to) to powers and ds.
template <typename Element>
void ScoreGradients(const BackMemory<Element>& m, int64_t from, int64_t to, int64_t keys) {
  constexpr int64_t kStep = kBackQueries;
  for (; from < to; from += kLanes) {
    const Vector base = LoadVector(m.largest + from), factor = LoadVector(m.inverse + from),
                 less = LoadVector(m.delta + from);
    for (int64_t j = 0; j < keys; ++j) {
      const Vector power = Exp2(LoadVector(m.powers + j * kStep + from) - base) * factor;
      StoreVector(m.powers + j * kStep + from, power);
      StoreVector(m.ds + j * kStep + from, power * (LoadVector(m.ds + j * kStep + from) - less));
    }
  }
}

// The backward pass of a block of keys [key, key + n) of a sequence and a head of k and v: their dk and dv, and what
// they add to dq, [rows][depth].
template <typename Element>
void BackwardBlock(const Problem& p, const Sequence& s, int64_t kv, int64_t key, int64_t n, const Gradients& g,
                   float* dq) {
  thread_local Scratch scratch;
  thread_local Lanes lanes;
  constexpr int64_t kStep = kBackQueries, kDepth = kDepthOf<Element>;
  const int64_t d = p.depth, e = p.value_depth, d_steps = Steps<Element>(d), e_steps = Steps<Element>(e);
  BackMemory<Element> m(p, n, scratch);
  PackRows(p.type, p.k, p.kv_place(s, kv, key) * d, p.kv_heads * d, n, d, m.k, d_steps);
  PackRows(p.type, p.v, p.kv_place(s, kv, key) * e, p.kv_heads * e, n, e, m.v, e_steps);
  if (m.k_steps != m.k) {
    PackSteps(
        p.type, p.k, [&](int64_t r) { return p.kv_place(s, kv, key + r) * d; }, n, d, m.k_steps, d);
  }
  const int64_t rows = p.rows(s);
  for (int64_t row = 0; row < rows; row += kStep) {
    const int64_t count = std::min(kStep, rows - row);
    lanes.Set(p, s, kv, row, count);
    if (lanes.from >= key + n || lanes.to <= key) continue;
    m.PackQueries(p, s, kv, row, count, g);
    int64_t begin = std::max(key, lanes.from);
    begin -= (begin - key) % kDepth;
    const int64_t end = std::min(key + n, lanes.to);
    for (int64_t tile = begin; tile < end; tile += kBackKeys) {
      const int64_t keys = std::min(kBackKeys, end - tile), at = tile - key;
      const auto [lane, lanes_end] = lanes.Seeing(tile, keys);
      if (lane == lanes_end) continue;
      const int64_t width = lanes_end - lane, wide = width / kPanel;
      float *powers = m.powers + lane, *ds = m.ds + lane, *slope = p.softcap > 0 ? m.slope : nullptr;
      for (int64_t from = lane; from < lanes_end; from += kPanel) {
        Product<kScores<Element>>(keys, 1, d_steps, {m.k + at * d_steps, d_steps, 1}, m.q_by_lane + from, kStep,
                                  m.powers + from, kStep, m.scale);
        Scores(p, lanes, from / kPanel, tile, keys, m.powers + from, kStep, slope == nullptr ? nullptr : slope + from);
      }
      Product<Into::kStore>(keys, wide, e_steps, {m.v + at * e_steps, e_steps, 1}, m.do_by_lane + lane, kStep, ds,
                            kStep);
      ScoreGradients(m, lane, lanes_end, keys);
      if (g.dbias != nullptr) {
        for (int64_t i = lane; i < std::min(count, lanes_end); ++i) {
          float* to = g.dbias + lanes.bias[i] + tile;
          for (int64_t j = 0; j < keys; ++j) to[j] += m.ds[j * kStep + i];
        }
      }
      for (int64_t j = 0; slope != nullptr && j < keys; ++j) {
        for (int64_t i = lane; i < lanes_end; ++i) m.ds[j * kStep + i] *= slope[j * kStep + i];
      }
      const Element* ds_steps = AsSteps<Element>(ds, keys, width, kStep, m.room);
      Product<Into::kAdd>(d, wide, Steps<Element>(keys), {m.k_steps + at / kDepth * d, 1, d}, ds_steps, kStep,
                          m.dq + lane, kStep);
      Product<Into::kAdd>(keys, m.e_wide / kPanel, width / kDepth,
                          {AsRows<Element>(powers, keys, width, kStep), kStep, 1},
                          m.do_steps + lane / kDepth * m.e_wide, m.e_wide, m.dv + at * m.e_wide, m.e_wide);
      Product<Into::kAdd>(keys, m.d_wide / kPanel, width / kDepth, {AsRows<Element>(ds, keys, width, kStep), kStep, 1},
                          m.q_steps + lane / kDepth * m.d_wide, m.d_wide, m.dk + at * m.d_wide, m.d_wide);
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < d; ++j) dq[(row + i) * d + j] += m.dq[j * kStep + i];
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    StoreRow(p.type, m.dk + i * m.d_wide, 1, d, p.scale, g.dk, p.kv_place(s, kv, key + i) * d);
    StoreRow(p.type, m.dv + i * m.e_wide, 1, e, 1.0f, g.dv, p.kv_place(s, kv, key + i) * e);
  }
}
