// The two passes over tiles; once for each instruction set (see gemm.h).
//
// Lanes are queries: a panel holds kPanel queries side by side, scores are [key][query], so the largest score, the sum
// and the mask are vertical operations, and the powers are already in the form in which the second product reads them.

constexpr int64_t kQueries = 256;     // in a block of the forward pass
constexpr int64_t kKeys = 192;        // in a tile of the forward pass
constexpr int64_t kBackQueries = 64;  // in a block of the backward pass
constexpr int64_t kBackKeys = 48;     // in a tile of the backward pass: 64 x 48 scores and their gradients, 24 kB
constexpr int64_t kBackElements = 768 * 64;  // of k in a block of the backward pass

float QueryScale(const Problem& p) { return p.softcap > 0 ? p.scale / p.softcap : p.scale * kLog2E; }

// What a block of rows has seen, not yet divided by the sum: acc is [panels][value_depth][kPanel].
struct Partial {
  float *largest, *sum, *acc;

  static int64_t Size(int64_t rows, int64_t value_depth) { return Panels(rows) * kPanel * (value_depth + 2); }
  Partial(float* memory, int64_t panels)
      : largest(memory), sum(memory + panels * kPanel), acc(memory + 2 * panels * kPanel) {}
};

// Rows [row, row + count) of a sequence and a head of k and v, over the keys [from, to).
void ForwardBlock(const Problem& p, const Sequence& s, int64_t kv, int64_t row, int64_t count, int64_t from, int64_t to,
                  float* result) {
  thread_local Scratch scratch;
  thread_local Lanes lanes;
  lanes.Set(p, s, kv, row, count);
  const int64_t d = p.depth, e = p.value_depth, panels = lanes.panels;
  Parts parts;
  const int64_t q_at = parts.Add(panels * kPanel * d), k_at = parts.Add(kKeys * d), v_at = parts.Add(kKeys * e),
                s_at = parts.Add(kKeys * kPanel), alpha_at = parts.Add(kPanel);
  float* memory = scratch.Get(parts.size());
  float *q = memory + q_at, *k = memory + k_at, *v = memory + v_at, *scores = memory + s_at, *alpha = memory + alpha_at;
  const Partial out(result, panels);
  std::fill_n(out.largest, panels * kPanel, kMinusInfinity);
  std::fill_n(out.sum, panels * kPanel * (e + 1), 0.0f);  // and acc behind it
  std::fill_n(q + (panels - 1) * kPanel * d, kPanel * d, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    PackLane(p.type, p.q, p.place(s, kv, row + i) * d, d, QueryScale(p), q + i / kPanel * kPanel * d + i % kPanel,
             kPanel);
  }
  from = std::max(from, lanes.from);
  to = std::min(to, lanes.to);
  for (int64_t key = from; key < to; key += kKeys) {
    const int64_t n = std::min(kKeys, to - key);
    Pack(p.type, p.k, p.kv_place(s, kv, key) * d, p.kv_heads * d, n, d, k, d);
    Pack(p.type, p.v, p.kv_place(s, kv, key) * e, p.kv_heads * e, n, e, v, e);
    for (int64_t panel = 0; panel < panels; ++panel) {
      // Of the tile, what the panel sees: at a causal mask's edge half of it.
      const int64_t first = std::max(key, lanes.first[panel]), last = std::min(key + n, lanes.last[panel]);
      const int64_t seen = last - first, at = first - key;
      if (seen <= 0) continue;
      Product<Into::kStore>(seen, 1, d, {k + at * d, d, 1}, q + panel * kPanel * d, kPanel, scores, kPanel);
      Scores(p, lanes, panel, first, seen, scores, kPanel);
      SoftmaxStep(scores, seen, out.largest + panel * kPanel, out.sum + panel * kPanel, alpha);
      Product<Into::kScale>(e, 1, seen, {v + at * e, 1, e}, scores, kPanel, out.acc + panel * kPanel * e, kPanel,
                            alpha);
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
inline void DeltaPanel(const Problem& p, const Gradients& g, int64_t row, float* delta) {
  thread_local Scratch scratch;
  const int64_t e = p.value_depth, count = std::min<int64_t>(kPanel, g.rows - row);
  float *o = scratch.Get(2 * e * kPanel), *d_o = o + e * kPanel;
  std::fill_n(o, 2 * e * kPanel, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    PackLane(p.type, g.o, (row + i) * e, e, 1.0f, o + i, kPanel);
    PackLane(p.type, g.d_o, (row + i) * e, e, 1.0f, d_o + i, kPanel);
  }
  for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
    Vector sum = {};
    for (int64_t i = 0; i < e; ++i) sum += LoadVector(o + i * kPanel + lane) * LoadVector(d_o + i * kPanel + lane);
    StoreVector(delta + lane, sum);
  }
  if (g.dlse == nullptr) return;
  for (int64_t i = 0; i < count; ++i) delta[i] -= g.dlse[row + i];
}

// The backward pass of a block of keys [key, key + n) of a sequence and a head of k and v: their dk and dv, and what
// they add to dq, [rows][depth].
void BackwardBlock(const Problem& p, const Sequence& s, int64_t kv, int64_t key, int64_t n, const Gradients& g,
                   float* dq) {
  thread_local Scratch scratch;
  thread_local Lanes lanes;
  const int64_t d = p.depth, e = p.value_depth, dp = Panels(d) * kPanel, ep = Panels(e) * kPanel;
  constexpr int64_t kStep = kBackQueries;
  Parts parts;
  const int64_t k_at = parts.Add(n * d), v_at = parts.Add(n * e), dk_at = parts.Add(n * dp), dv_at = parts.Add(n * ep),
                qt_at = parts.Add(d * kStep), q_at = parts.Add(kStep * dp), dot_at = parts.Add(e * kStep),
                do_at = parts.Add(kStep * ep), dqt_at = parts.Add(d * kStep), p_at = parts.Add(kBackKeys * kStep),
                ds_at = parts.Add(kBackKeys * kStep), slope_at = parts.Add(kBackKeys * kStep),
                row_at = parts.Add(3 * kStep);
  float* m = scratch.Get(parts.size());
  float *k = m + k_at, *v = m + v_at, *dk = m + dk_at, *dv = m + dv_at, *qt = m + qt_at, *q = m + q_at,
        *dot = m + dot_at, *d_o = m + do_at, *dqt = m + dqt_at, *powers = m + p_at, *ds = m + ds_at,
        *slope = p.softcap > 0 ? m + slope_at : nullptr, *largest = m + row_at, *inverse = largest + kStep,
        *delta = inverse + kStep;
  Pack(p.type, p.k, p.kv_place(s, kv, key) * d, p.kv_heads * d, n, d, k, d);
  Pack(p.type, p.v, p.kv_place(s, kv, key) * e, p.kv_heads * e, n, e, v, e);
  std::fill_n(dk, n * dp, 0.0f);
  std::fill_n(dv, n * ep, 0.0f);
  const int64_t rows = p.rows(s);
  for (int64_t row = 0; row < rows; row += kStep) {
    const int64_t count = std::min(kStep, rows - row);
    lanes.Set(p, s, kv, row, count);
    if (lanes.from >= key + n || lanes.to <= key) continue;
    std::fill_n(qt, d * kStep, 0.0f);
    std::fill_n(q, kStep * dp, 0.0f);
    std::fill_n(dot, e * kStep, 0.0f);
    std::fill_n(d_o, kStep * ep, 0.0f);
    std::fill_n(largest, 3 * kStep, 0.0f);
    std::fill_n(dqt, d * kStep, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = p.place(s, kv, row + i);
      PackLane(p.type, p.q, place * d, d, QueryScale(p), qt + i, kStep);
      Pack(p.type, p.q, place * d, 0, 1, d, q + i * dp, dp);
      PackLane(p.type, g.d_o, place * e, e, 1.0f, dot + i, kStep);
      Pack(p.type, g.d_o, place * e, 0, 1, e, d_o + i * ep, ep);
      largest[i] = g.largest[place];
      inverse[i] = g.inverse[place];
      delta[i] = g.delta[place];
    }
    const int64_t begin = std::max(key, lanes.from), end = std::min(key + n, lanes.to);
    for (int64_t tile = begin; tile < end; tile += kBackKeys) {
      const int64_t keys = std::min(kBackKeys, end - tile), at = tile - key;
      const auto [lane, lanes_end] = lanes.Seeing(tile, keys);
      if (lane == lanes_end) continue;
      const int64_t width = lanes_end - lane, wide = width / kPanel;
      float *p_here = powers + lane, *ds_here = ds + lane;
      Product<Into::kStore>(keys, wide, d, {k + at * d, d, 1}, qt + lane, kStep, p_here, kStep);
      Product<Into::kStore>(keys, wide, e, {v + at * e, e, 1}, dot + lane, kStep, ds_here, kStep);
      for (int64_t from = lane; from < lanes_end; from += kPanel) {
        Scores(p, lanes, from / kPanel, tile, keys, powers + from, kStep, slope == nullptr ? nullptr : slope + from);
      }
      for (int64_t from = lane; from < lanes_end; from += kLanes) {
        const Vector base = LoadVector(largest + from), factor = LoadVector(inverse + from),
                     less = LoadVector(delta + from);
        for (int64_t j = 0; j < keys; ++j) {
          const Vector power = Exp2(LoadVector(powers + j * kStep + from) - base) * factor;
          StoreVector(powers + j * kStep + from, power);
          StoreVector(ds + j * kStep + from, power * (LoadVector(ds + j * kStep + from) - less));
        }
      }
      if (g.dbias != nullptr) {
        for (int64_t i = lane; i < std::min(count, lanes_end); ++i) {
          float* to = g.dbias + lanes.bias[i] + tile;
          for (int64_t j = 0; j < keys; ++j) to[j] += ds[j * kStep + i];
        }
      }
      for (int64_t j = 0; slope != nullptr && j < keys; ++j) {
        for (int64_t i = lane; i < lanes_end; ++i) ds[j * kStep + i] *= slope[j * kStep + i];
      }
      Product<Into::kAdd>(keys, ep / kPanel, width, {p_here, kStep, 1}, d_o + lane * ep, ep, dv + at * ep, ep);
      Product<Into::kAdd>(keys, dp / kPanel, width, {ds_here, kStep, 1}, q + lane * dp, dp, dk + at * dp, dp);
      Product<Into::kAdd>(d, wide, keys, {k + at * d, 1, d}, ds_here, kStep, dqt + lane, kStep);
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < d; ++j) dq[(row + i) * d + j] += dqt[j * kStep + i];
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    StoreRow(p.type, dk + i * dp, 1, d, p.scale, g.dk, p.kv_place(s, kv, key + i) * d);
    StoreRow(p.type, dv + i * ep, 1, e, 1.0f, g.dv, p.kv_place(s, kv, key + i) * e);
  }
}
