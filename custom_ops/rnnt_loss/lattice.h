// The sums over ways through the lattice of frames and positions; once for each instruction set (see gemm.h).
//
// From (t, u) a way goes on with a blank to (t + 1, u) or with label u to (t, u + 1). Cells of a diagonal d = t + u do
// not depend on one another, so lanes are positions:
//
//   alpha(d, u) = alpha(d-1, u) blank(d-1, u) + alpha(d-1, u-1) label(d-1, u-1)
//   beta(d, u) = blank(d, u) beta(d+1, u) + label(d, u) beta(d+1, u+1)

// Logarithms of the probabilities, by diagonal; later how likely a way uses them. What is no cell has none.
struct Lattice {
  int64_t frames, count, step;
  std::vector<float> memory;
  bool is_number = true;  // no cell whose softmax is NaN

  int64_t diagonals() const { return frames + count; }
  Lattice(int64_t frames, int64_t count)
      : frames(frames),
        count(count),
        step((count + 1 + 2 * kLanes + 15) / 16 * 16),
        memory(2 * (frames + count) * step + 2 * kLanes, kMinusInfinity) {}
  float* Blank(int64_t d) { return memory.data() + kLanes + 2 * d * step; }
  float* Label(int64_t d) { return Blank(d) + step; }
};

// Numbers of a diagonal, with room for vectors to read beside them.
struct Row {
  float *mantissa, *exponent;

  static int64_t Step(int64_t count) { return (count + 1 + 4 * kLanes + 15) / 16 * 16; }
  static int64_t Size(int64_t count) { return 2 * Step(count); }
  Row(float* memory, int64_t count) : mantissa(memory + kLanes), exponent(mantissa + Step(count)) {}

  TK_INLINE Wide Get(int64_t u) const { return {LoadVector(mantissa + u), LoadVector(exponent + u)}; }
  TK_INLINE void Set(int64_t u, Wide value) {
    StoreVector(mantissa + u, value.mantissa);
    StoreVector(exponent + u, value.exponent);
  }
  // Zeros everywhere but at one position, or nowhere else.
  void Start(int64_t count, int64_t one) {
    for (int64_t u = -kLanes; u <= count + 2 * kLanes; u += kLanes)
      Set(u, {Broadcast(1.0f), Broadcast(kMinusInfinity)});
    if (one >= 0) exponent[one] = 0;
  }
};

// The sum over all ways. `rows` has room for a row for each diagonal.
WideScalar RunForward(Lattice& lattice, float* rows) {
  const int64_t count = lattice.count, size = Row::Size(count), last = lattice.diagonals() - 1;
  const Wide one{Broadcast(1.0f), Broadcast(0.0f)};
  Row(rows, count).Start(count, 0);
  for (int64_t d = 1; d <= last; ++d) {
    const Row from(rows + (d - 1) * size, count);
    Row to(rows + d * size, count);
    to.Start(count, -1);
    const float *blank = lattice.Blank(d - 1), *label = lattice.Label(d - 1);
    for (int64_t u = 0; u <= count; u += kLanes) {
      to.Set(u, SumTimes(Times(from.Get(u), WideExp(LoadVector(blank + u))),
                         Times(from.Get(u - 1), WideExp(LoadVector(label + u - 1))), one));
    }
  }
  const Row end(rows + last * size, count);
  const Wide all = Times(end.Get(count), WideExp(Broadcast(lattice.Blank(last)[count])));
  return {all.mantissa[0], all.exponent[0]};
}

// Puts how likely a way uses each blank and label in the place of their logarithms.
void RunBackward(Lattice& lattice, const float* rows, WideScalar total, float* memory) {
  const int64_t count = lattice.count, size = Row::Size(count);
  const Wide one{Broadcast(1.0f), Broadcast(0.0f)};
  const float inverse = static_cast<float>(1 / total.mantissa), exponent = static_cast<float>(total.exponent);
  Row row(memory, count);
  row.Start(count, count);
  for (int64_t d = lattice.diagonals() - 1; d >= 0; --d) {
    const Row forward(const_cast<float*>(rows) + d * size, count);
    float *blank = lattice.Blank(d), *label = lattice.Label(d);
    for (int64_t u = 0; u <= count; u += kLanes) {
      const Wide with_blank = Times(row.Get(u), WideExp(LoadVector(blank + u))),
                 with_label = Times(row.Get(u + 1), WideExp(LoadVector(label + u)));
      const Wide until = forward.Get(u);
      StoreVector(blank + u, until.mantissa * with_blank.mantissa * inverse *
                                 PowerOf2(until.exponent + with_blank.exponent - exponent));
      StoreVector(label + u, until.mantissa * with_label.mantissa * inverse *
                                 PowerOf2(until.exponent + with_label.exponent - exponent));
      row.Set(u, SumTimes(with_blank, with_label, one));
    }
  }
}

inline float LossOf(Lattice& lattice) {
  if (!lattice.is_number) return std::numeric_limits<float>::quiet_NaN();
  if (lattice.frames == 0) return lattice.count == 0 ? 0 : -kMinusInfinity;
  thread_local tftoolkit::Scratch scratch;
  return static_cast<float>(-Log(RunForward(lattice, scratch.Get(lattice.diagonals() * Row::Size(lattice.count)))));
}

// What the lattice's probabilities become; returns d_loss, or 0 where the loss is infinite and NaN where it is NaN.
inline float Expect(Lattice& lattice, float d_loss) {
  if (!lattice.is_number) return std::numeric_limits<float>::quiet_NaN();
  if (lattice.frames == 0) return 0;
  thread_local tftoolkit::Scratch scratch;
  const int64_t size = Row::Size(lattice.count);
  float* rows = scratch.Get((lattice.diagonals() + 1) * size);
  const WideScalar total = RunForward(lattice, rows);
  if (total.exponent == static_cast<double>(kMinusInfinity)) return 0;
  RunBackward(lattice, rows, total, rows + lattice.diagonals() * size);
  return d_loss;
}
