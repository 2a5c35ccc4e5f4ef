// The loss of a joint tensor of logits; once for each instruction set (see gemm.h).

struct Joint {
  const void* logits;
  const float *shifts, *sums;  // of each cell: the largest logit, the sum of e^(logit - largest)

  // The logarithm of a class' probability in a cell.
  float LogOf(const Problem& p, int64_t cell, int64_t c) const {
    const float logit = tftoolkit::WithType(p.type, [&](auto zero) {
      return tftoolkit::Load(static_cast<const decltype(zero)*>(logits)[cell * p.classes + c]);
    });
    return logit - shifts[cell] - std::log(sums[cell]);
  }

  Lattice MakeLattice(const Problem& p, int64_t b) const {
    const Sequence& s = p.sequences[b];
    Lattice lattice(s.frames, s.count);
    for (int64_t t = 0; t < s.frames; ++t) {
      for (int64_t u = 0; u <= s.count; ++u) {
        const int64_t cell = p.Cell(b, t, u);
        lattice.is_number = lattice.is_number && sums[cell] > 0 && sums[cell] < -kMinusInfinity;
        lattice.Blank(t + u)[u] = LogOf(p, cell, p.blank);
        if (u < s.count) lattice.Label(t + u)[u] = LogOf(p, cell, s.labels[u]);
      }
    }
    return lattice;
  }
};

void Losses(ffi::ThreadPool& pool, const Problem& p, const JointLoss& call) {
  tftoolkit::ParallelFor(pool, p.batch * p.time, [&](int64_t i) {
    for (int64_t u = 0; u < p.positions; ++u) {
      const int64_t cell = i * p.positions + u;
      const bool counts = p.sequences[i / p.time].Has(i % p.time, u);
      const RowSum row = counts ? SumRow(p.type, call.logits, cell * p.classes, p.classes) : RowSum{0, 1};
      call.shifts[cell] = row.shift;
      call.sums[cell] = row.sum;
    }
  });
  tftoolkit::ParallelFor(pool, p.batch, [&](int64_t b) {
    Lattice lattice = Joint{call.logits, call.shifts, call.sums}.MakeLattice(p, b);
    call.losses[b] = LossOf(lattice);
  });
}

void Gradients(ffi::ThreadPool& pool, const Problem& p, const JointGradient& call) {
  const Joint joint{call.logits, call.shifts, call.sums};
  std::vector<Lattice> lattices(p.batch, Lattice(0, 0));
  std::vector<float> upstream(p.batch);
  tftoolkit::ParallelFor(pool, p.batch, [&](int64_t b) {
    lattices[b] = joint.MakeLattice(p, b);
    upstream[b] = Expect(lattices[b], call.d_loss[b]);
  });
  tftoolkit::ParallelFor(pool, p.batch * p.time, [&](int64_t i) {
    thread_local tftoolkit::Scratch scratch;
    float* taken = scratch.Get(p.classes + kLanes);
    std::fill_n(taken, p.classes + kLanes, 0.0f);
    const int64_t b = i / p.time, t = i % p.time;
    const Sequence& s = p.sequences[b];
    const float d = upstream[b], nothing = 0;
    for (int64_t u = 0; u < p.positions; ++u) {
      const int64_t cell = i * p.positions + u, place = cell * p.classes;
      if (!s.Has(t, u)) {
        StoreRow(p.type, &nothing, 0, p.classes, 1.0f, call.dlogits, place);
        continue;
      }
      float none = 0;
      const bool computed = d != 0 && d == d;
      float& of_label = u < s.count ? taken[s.labels[u]] : none;
      if (computed) {
        taken[p.blank] = lattices[b].Blank(t + u)[u];
        of_label = u < s.count ? lattices[b].Label(t + u)[u] * p.label_weight : 0;
      }
      const float scale = d * (taken[p.blank] + of_label) / joint.sums[cell] + call.d_sum[cell];
      StoreSoftmaxGradient(p.type, joint.logits, call.dlogits, place, p.classes, joint.shifts[cell], scale, taken, d);
      taken[p.blank] = of_label = 0;
    }
  });
}
