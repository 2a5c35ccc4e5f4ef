// What happens to a tile of scores between the two products; once for each instruction set (see gemm.h). Scores are
// held in units of log 2, so that their exponentials are powers of two.

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kMinusInfinity = -__builtin_huge_valf();

// 2^x for x <= 0 (of larger x anything) with an error of 1 ulp; 0 from -127 on down, NaN for NaN. x = n + f with |f| <=
// 1/2; of 2^f a polynomial of degree 6 (fitted, relative error 2^-29), of 2^n the exponent's bits.
TK_INLINE Vector Exp2(Vector x) {
  x = x < -127.0f ? Broadcast(-127.0f) : x;
  const Vector shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number, which the low bits then hold
  const Vector f = x - (shifted - 12582912.0f);
  Vector y = f * 1.5353361959569156e-4f + 1.3398875016719103e-3f;
  y = y * f + 9.61843691766262e-3f;
  y = y * f + 5.5503323674201965e-2f;
  y = y * f + 2.4022647738456726e-1f;
  y = y * f + 6.931471824645996e-1f;
  y = y * f + 1.0f;
  BitsVector whole, bits;
  std::memcpy(&whole, &shifted, sizeof whole);
  std::memcpy(&bits, &y, sizeof bits);
  bits += whole << 23;
  std::memcpy(&y, &bits, sizeof y);
  return x == x ? y : x;  // the exponent's bits may make a number of a NaN
}

// For small x a fitted odd polynomial, so that nothing cancels; else 1 - 2 / (e^2x + 1). An error of 2 ulp.
TK_INLINE Vector Tanh(Vector x) {
  const Vector size = x < 0.0f ? -x : x;
  const Vector square = x * x;
  Vector p = square * -5.704984977841377e-3f + 2.0639084279537201e-2f;
  p = p * square + -5.373971536755562e-2f;
  p = p * square + 1.3331441581249237e-1f;
  p = p * square + -3.333328068256378e-1f;
  const Vector small = x + x * square * p;
  const Vector power = Exp2(size * (-2.0f * kLog2E));  // e^-2|x|
  const Vector large = (1.0f - power) / (1.0f + power);
  return size < 0.625f ? small : (x < 0.0f ? -large : large);
}

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
