// What happens to a tile of scores between the two products; once for each instruction set (see gemm.h). Scores are
// held in units of log 2, so that their exponentials are powers of two.

// The rows of a task that are worked on together, in panels, and what each of them may see.
struct Lanes {
  int64_t rows = 0, panels = 0;
  std::vector<int32_t> begin, end;  // per lane; lanes without a row see nothing
  std::vector<int64_t> first, last, least,
      most;                   // per panel: the smallest begin, largest end, largest begin, smallest end
  std::vector<int64_t> bias;  // per lane, where its row of the bias begins
  int64_t from = 0, to = 0;   // what any of them sees

  void Set(const Problem& p, const Sequence& s, int64_t kv, int64_t row_begin, int64_t count) {
    rows = count;
    panels = (count + kPanel - 1) / kPanel;
    const int64_t lanes = panels * kPanel;
    begin.assign(lanes, 0);
    end.assign(lanes, 0);
    bias.assign(lanes, 0);
    first.assign(panels, s.valid);
    last.assign(panels, 0);
    least.assign(panels, 0);
    most.assign(panels, s.valid);
    from = s.valid;
    to = 0;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t panel = lane / kPanel;
      if (lane >= count) {
        most[panel] = 0;
        continue;
      }
      const int64_t row = row_begin + lane, query = row % s.queries;
      const auto [one, other] = p.Seen(s, query);
      begin[lane] = static_cast<int32_t>(one);
      end[lane] = static_cast<int32_t>(other);
      bias[lane] = s.number * p.bias.batch + p.head(s, kv, row) * p.bias.head + query * p.bias.query;
      least[panel] = std::max(least[panel], one);
      most[panel] = std::min(most[panel], other);
      if (one == other) continue;
      first[panel] = std::min(first[panel], one);
      last[panel] = std::max(last[panel], other);
      from = std::min(from, one);
      to = std::max(to, other);
    }
  }

  // The lanes from the first to behind the last panel that sees one of these keys.
  std::pair<int64_t, int64_t> Seeing(int64_t key, int64_t keys) const {
    const auto sees = [&](int64_t panel) { return first[panel] < key + keys && last[panel] > key; };
    int64_t begin = 0, end_panel = panels;
    while (begin < end_panel && !sees(begin)) ++begin;
    while (end_panel > begin && !sees(end_panel - 1)) --end_panel;
    return {begin * kPanel, end_panel * kPanel};
  }
  bool SeesAll(int64_t panel, int64_t key, int64_t keys) const {
    return least[panel] <= key && most[panel] >= key + keys;
  }
};

// From products of scaled queries and keys to scores, in place: [keys][step], a panel of it. Of softcapped scores
// `slope`, of the same form, gets the derivative by what was capped.
void Scores(const Problem& p, const Lanes& lanes, int64_t panel, int64_t key, int64_t keys, float* scores, int64_t step,
            float* slope = nullptr) {
  if (p.softcap > 0) {
    for (int64_t j = 0; j < keys; ++j) {
      for (int half = 0; half < 2; ++half) {
        float* at = scores + j * step + half * kLanes;
        const Vector t = Tanh(LoadVector(at));
        if (slope != nullptr) StoreVector(slope + j * step + half * kLanes, 1.0f - t * t);
        StoreVector(at, t * (p.softcap * kLog2E));
      }
    }
  }
  if (p.bias.data != nullptr) {
    const int64_t count = std::min<int64_t>(kPanel, lanes.rows - panel * kPanel);
    WithType(p.type, [&](auto zero) {
      for (int64_t lane = 0; lane < count; ++lane) {
        const auto* bias = static_cast<const decltype(zero)*>(p.bias.data) + lanes.bias[panel * kPanel + lane] + key;
        for (int64_t j = 0; j < keys; ++j) scores[j * step + lane] += Load(bias[j]) * kLog2E;
      }
    });
  }
  if (lanes.SeesAll(panel, key, keys)) return;
  for (int half = 0; half < 2; ++half) {
    const int64_t lane = panel * kPanel + half * kLanes;
    const IntVector begin = *reinterpret_cast<const UnalignedIntVector*>(lanes.begin.data() + lane);
    const IntVector end = *reinterpret_cast<const UnalignedIntVector*>(lanes.end.data() + lane);
    for (int64_t j = 0; j < keys; ++j) {
      float* at = scores + j * step + half * kLanes;
      const IntVector here = static_cast<int32_t>(key + j) - IntVector{};
      StoreVector(at, ((begin <= here) & (here < end)) ? LoadVector(at) : Broadcast(kMinusInfinity));
    }
  }
}

// One step of the online softmax (Milakov & Gimelshein 2018) for a panel of scores [keys][kPanel]: they become powers
// relative to the largest so far; `alpha` is what everything before must be multiplied by.
TK_INLINE void SoftmaxStep(float* scores, int64_t keys, float* largest, float* sum, float* alpha) {
  for (int half = 0; half < 2; ++half) {
    float* column = scores + half * kLanes;
    const Vector before = LoadVector(largest + half * kLanes);
    Vector top = before;
    for (int64_t j = 0; j < keys; ++j) {
      const Vector score = LoadVector(column + j * kPanel);
      top = score > top ? score : top;
    }
    const Vector base = top == kMinusInfinity ? Broadcast(0.0f) : top;  // nothing seen yet: infinity minus infinity
    Vector total = {};
    for (int64_t j = 0; j < keys; ++j) {
      const Vector power = Exp2(LoadVector(column + j * kPanel) - base);
      StoreVector(column + j * kPanel, power);
      total += power;
    }
    const Vector factor = Exp2(before - base);
    StoreVector(alpha + half * kLanes, factor);
    StoreVector(largest + half * kLanes, top);
    StoreVector(sum + half * kLanes, LoadVector(sum + half * kLanes) * factor + total);
  }
}
