// The two recursions over states, frame by frame; once for each instruction set (see gemm.h).
//
// Lanes are pairs of states: blank k and label k behind it. With e(t, s) the exponential of the logit of state s at
// frame t, less the largest one:
//
//   blank(t, k) = (blank(t-1, k) + label(t-1, k-1)) e(t, blank)
//   label(t, k) = (label(t-1, k) + blank(t-1, k) + label(t-1, k-1) unless labels k-1 and k are the same) e(t, label k)
//
// and backward the same from the end. Both start before and behind the frames, with 1 at the first and the last blank.

// A number for each pair, with room for vectors to read beside the first and behind the last pair.
struct Row {
  float *blank, *blank_exponent, *label, *label_exponent;

  static int64_t Step(int64_t count) { return (count + 1 + 4 * kLanes + 15) / 16 * 16; }
  static int64_t Size(int64_t count) { return 4 * Step(count); }
  Row(float* memory, int64_t count)
      : blank(memory + kLanes),
        blank_exponent(blank + Step(count)),
        label(blank_exponent + Step(count)),
        label_exponent(label + Step(count)) {}

  TK_INLINE Wide Blank(int64_t k) const { return {LoadVector(blank + k), LoadVector(blank_exponent + k)}; }
  TK_INLINE Wide Label(int64_t k) const { return {LoadVector(label + k), LoadVector(label_exponent + k)}; }
  TK_INLINE void Store(int64_t k, Wide new_blank, Wide new_label) {
    StoreVector(blank + k, new_blank.mantissa);
    StoreVector(blank_exponent + k, new_blank.exponent);
    StoreVector(label + k, new_label.mantissa);
    StoreVector(label_exponent + k, new_label.exponent);
  }
  void StoreZero(int64_t k) {
    const Wide zero{Broadcast(1.0f), Broadcast(kMinusInfinity)};
    Store(k, zero, zero);
  }
  // Zeros everywhere but at one blank.
  void Start(int64_t count, int64_t one) {
    for (int64_t k = -kLanes; k <= count + 2 * kLanes; k += kLanes) StoreZero(k);
    blank_exponent[one] = 0;
  }
};

// What the labels of a frame contribute, from pair `first` on.
struct Emission {
  float *label, *label_exponent;
  float blank, blank_exponent;
  int64_t first;

  TK_INLINE Wide Blank() const { return {Broadcast(blank), Broadcast(blank_exponent)}; }
  TK_INLINE Wide Label(int64_t k) const {
    return {LoadVector(label + k - first), LoadVector(label_exponent + k - first)};
  }
  static int64_t Size(int64_t count) { return 2 * Row::Step(count); }
};

// The exponentials of a frame's logits at the labels of pairs [s.First(t), s.Last(t)], to the end of the last vector.
inline Emission Emit(const Problem& p, const Sequence& s, int64_t b, int64_t t, float shift, float* memory) {
  Emission e{memory, memory + Row::Step(s.count), 0, 0, s.First(t)};
  const int64_t last = s.Last(t);
  const int64_t n = (last - e.first) / kLanes * kLanes + kLanes;
  const float blank = tftoolkit::WithType(p.type, [&](auto zero) {
    const auto* row = static_cast<const decltype(zero)*>(p.logits) + p.Row(b, t);
    for (int64_t i = 0; i < n; ++i) e.label[i] = tftoolkit::Load(row[s.labels[e.first + i]]);
    return tftoolkit::Load(row[p.blank]);
  });
  const Wide of_blank = WideExp(Broadcast(blank - shift));
  e.blank = of_blank.mantissa[0], e.blank_exponent = of_blank.exponent[0];
  for (int64_t i = 0; i < n; i += kLanes) {
    const Wide power = WideExp(LoadVector(e.label + i) - shift);
    StoreVector(e.label + i, power.mantissa);
    StoreVector(e.label_exponent + i, power.exponent);
  }
  // Behind the last blank there is no label, though vectors have room for one.
  for (int64_t i = s.count - e.first; i < n; ++i) e.label_exponent[i] = kMinusInfinity;
  return e;
}

// From frame t - 1 to frame t.
inline void Forward(const Sequence& s, int64_t t, const Emission& e, const Row& from, Row to) {
  const Wide of_blank = e.Blank();
  const int64_t last = s.Last(t);
  int64_t k = e.first;
  for (; k <= last; k += kLanes) {
    const Wide blank = from.Blank(k), label = from.Label(k), before = from.Label(k - 1);
    const Wide other{before.mantissa, before.exponent + LoadVector(s.repeats + k)};
    to.Store(k, SumTimes(blank, before, of_blank), SumTimes(label, blank, other, e.Label(k)));
  }
  to.StoreZero(k);  // the next frame may read two vectors more, and what lies before the first pair
  to.StoreZero(k + kLanes);
  to.StoreZero(-kLanes);
}

// From frame t + 1 to frame t, in place. Rows hold the sum over what may follow, times the frame's own exponential.
// gets(k, blank, label) is called with the sums before they are multiplied: what may follow pair k at frame t.
template <typename Gets>
TK_INLINE void Backward(const Sequence& s, int64_t t, const Emission& e, Row row, const Gets& gets) {
  const Wide one{Broadcast(1.0f), Broadcast(0.0f)}, of_blank = e.Blank();
  const int64_t last = s.Last(t);
  for (int64_t k = e.first; k <= last; k += kLanes) {
    const Wide label = row.Label(k), next = row.Label(k + 1);
    const Wide other{next.mantissa, next.exponent + LoadVector(s.repeats + k + 1)};
    const Wide blank = SumTimes(row.Blank(k), label, one);
    const Wide follows = SumTimes(label, row.Blank(k + 1), other, one);
    gets(k, blank, follows);
    row.Store(k, Times(blank, of_blank), Times(follows, e.Label(k)));
  }
}
