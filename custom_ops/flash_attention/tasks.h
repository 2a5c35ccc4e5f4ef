// How the two passes are cut into tasks; once for each instruction set (see gemm.h). The cuts and the order in which
// parts are added follow from the shapes alone, so results do not depend on the number of threads.

constexpr int64_t kTasks = 16;  // where there would be fewer, queries and then keys are cut smaller

struct QueryBlock {
  const Sequence* sequence;
  int64_t kv, row, count, work;
};

// Blocks of queries, those with the most keys first.
std::vector<QueryBlock> QueryBlocks(const Problem& p) {
  const auto count_of = [&](int64_t size) {
    int64_t blocks = 0;
    for (const Sequence& s : p.sequences) blocks += (p.rows(s) + size - 1) / size * p.kv_heads;
    return blocks;
  };
  int64_t size = kQueries;
  while (size > 4 * kPanel && count_of(size) < kTasks) size /= 2;
  std::vector<QueryBlock> blocks;
  blocks.reserve(count_of(size));
  for (const Sequence& s : p.sequences) {
    for (int64_t kv = 0; kv < p.kv_heads; ++kv) {
      for (int64_t row = 0; row < p.rows(s); row += size) {
        const int64_t count = std::min(size, p.rows(s) - row);
        const int64_t seen = p.Seen(s, (row + count - 1) % s.queries).second - p.Seen(s, row % s.queries).first;
        blocks.push_back({&s, kv, row, count, count * seen});
      }
    }
  }
  std::stable_sort(blocks.begin(), blocks.end(), [](const auto& a, const auto& b) { return a.work > b.work; });
  return blocks;
}

int64_t LongestKeys(const Problem& p) {
  int64_t keys = 0;
  for (const Sequence& s : p.sequences) keys = std::max(keys, s.valid);
  return keys;
}

template <typename Element>
void Forward(ffi::ThreadPool& pool, const Problem& p, const Outputs& outputs) {
  const std::vector<QueryBlock> blocks = QueryBlocks(p);
  const int64_t count = static_cast<int64_t>(blocks.size());
  if (count == 0) return;
  // Few queries over many keys, as when text is generated: each thread takes a part of the keys.
  const int64_t tiles = (LongestKeys(p) + kKeys - 1) / kKeys;
  const int64_t splits = std::max<int64_t>(1, std::min((kTasks + count - 1) / count, tiles / 2));
  if (splits == 1) {
    tftoolkit::ParallelFor(pool, count, [&](int64_t i) {
      thread_local Scratch scratch;
      const QueryBlock& b = blocks[i];
      float* result = scratch.Get(Partial::Size(b.count, p.value_depth));
      ForwardBlock<Element>(p, *b.sequence, b.kv, b.row, b.count, 0, b.sequence->valid, result);
      StoreBlock(p, *b.sequence, b.kv, b.row, b.count, result, outputs);
    });
    return;
  }
  const int64_t size = Partial::Size(kQueries, p.value_depth), part = (tiles + splits - 1) / splits * kKeys;
  std::vector<float> results(count * splits * size);
  tftoolkit::ParallelFor(pool, count * splits, [&](int64_t i) {
    const QueryBlock& b = blocks[i / splits];
    const int64_t from = i % splits * part;
    ForwardBlock<Element>(p, *b.sequence, b.kv, b.row, b.count, from, from + part, results.data() + i * size);
  });
  tftoolkit::ParallelFor(pool, count, [&](int64_t i) {
    const QueryBlock& b = blocks[i];
    float* result = results.data() + i * splits * size;
    Combine(result, splits, size, Panels(b.count), p.value_depth);
    StoreBlock(p, *b.sequence, b.kv, b.row, b.count, result, outputs);
  });
}

// A sequence and a head of k and v.
struct KeyHead {
  const Sequence* sequence;
  int64_t kv;
  int64_t first_row;  // of all rows of all of them, where its own begin
};

// What one task does one after the other: what adds to the same elements of the bias' gradient.
std::vector<std::vector<KeyHead>> KeyHeads(const Problem& p, bool bias_gradient) {
  const bool by_sequence = !bias_gradient || p.bias.batch != 0, by_head = !bias_gradient || p.bias.head != 0;
  const int64_t heads = by_head ? p.kv_heads : 1;
  std::vector<std::vector<KeyHead>> groups(heads * (by_sequence ? p.sequences.size() : 1));
  int64_t rows = 0, number = 0;
  for (const Sequence& s : p.sequences) {
    for (int64_t kv = 0; kv < p.kv_heads; ++kv, rows += p.rows(s)) {
      groups[(by_sequence ? number * heads : 0) + (by_head ? kv : 0)].push_back({&s, kv, rows});
    }
    ++number;
  }
  return groups;
}

// Adds up what the parts of the keys, `size` floats from one to the next, gave, and stores it.
void StoreQueries(const Problem& p, const KeyHead& head, float* parts, int64_t count, int64_t size, void* dq) {
  const Sequence& s = *head.sequence;
  for (int64_t row = 0; row < p.rows(s); ++row) {
    float* sum = parts + row * p.depth;
    for (int64_t part = 1; part < count; ++part) {
      for (int64_t i = 0; i < p.depth; ++i) sum[i] += sum[part * size + i];
    }
    StoreRow(p.type, sum, 1, p.depth, p.scale, dq, p.place(s, head.kv, row) * p.depth);
  }
}

// dk, dv and the share in dq of the keys [from, to) of a sequence and a head.
template <typename Element>
void BackwardKeys(const Problem& p, const KeyHead& head, int64_t from, int64_t to, const Gradients& g, float* dq) {
  const Sequence& s = *head.sequence;
  std::fill_n(dq, p.rows(s) * p.depth, 0.0f);
  const int64_t block = std::max(kBackKeys, kBackElements / std::max<int64_t>(1, p.depth) / kBackKeys * kBackKeys);
  for (int64_t key = from; key < std::min(to, s.valid); key += block) {
    BackwardBlock<Element>(p, s, head.kv, key, std::min({block, to - key, s.valid - key}), g, dq);
  }
  for (int64_t key = std::max(from, s.valid); key < std::min(to, s.keys); ++key) {
    const int64_t place = p.kv_place(s, head.kv, key);
    const float nothing = 0;
    StoreRow(p.type, &nothing, 0, p.depth, 1.0f, g.dk, place * p.depth);
    StoreRow(p.type, &nothing, 0, p.value_depth, 1.0f, g.dv, place * p.value_depth);
  }
}

template <typename Element>
std::vector<float> Delta(ffi::ThreadPool& pool, const Problem& p, const Gradients& g) {
  constexpr int64_t kAtOnce = 16 * kPanel;
  std::vector<float> delta(Panels(g.rows) * kPanel);
  tftoolkit::ParallelFor(pool, (g.rows + kAtOnce - 1) / kAtOnce, [&](int64_t task) {
    for (int64_t row = task * kAtOnce; row < std::min(g.rows, (task + 1) * kAtOnce); row += kPanel) {
      DeltaPanel<Element>(p, g, row, delta.data() + row);
    }
  });
  return delta;
}

template <typename Element>
void Backward(ffi::ThreadPool& pool, const Problem& p, Gradients g, void* dq) {
  const std::vector<float> delta = Delta<Element>(pool, p, g);
  g.delta = delta.data();
  const std::vector<std::vector<KeyHead>> groups = KeyHeads(p, g.dbias != nullptr);
  const int64_t count = static_cast<int64_t>(groups.size());
  int64_t keys = 0, rows = 0;
  for (const Sequence& s : p.sequences) {
    keys = std::max(keys, s.keys);
    rows += p.rows(s) * p.kv_heads;
  }
  if (count == 0) return;
  const int64_t splits = std::max<int64_t>(1, std::min((kTasks / 2 + count - 1) / count, keys / (2 * kBackKeys)));
  const int64_t part = ((keys + splits - 1) / splits + kBackKeys - 1) / kBackKeys * kBackKeys;
  if (splits == 1) {
    tftoolkit::ParallelFor(pool, count, [&](int64_t i) {
      thread_local Scratch scratch;
      for (const KeyHead& head : groups[i]) {
        float* mine = scratch.Get(p.rows(*head.sequence) * p.depth);
        BackwardKeys<Element>(p, head, 0, head.sequence->keys, g, mine);
        StoreQueries(p, head, mine, 1, 0, dq);
      }
    });
    return;
  }
  const int64_t size = rows * p.depth;
  const std::unique_ptr<float[]> parts(new float[splits * size]);
  tftoolkit::ParallelFor(pool, count * splits, [&](int64_t i) {
    const int64_t from = i % splits * part;
    for (const KeyHead& head : groups[i / splits]) {
      BackwardKeys<Element>(p, head, from, std::min(from + part, head.sequence->keys), g,
                            parts.get() + i % splits * size + head.first_row * p.depth);
    }
  });
  tftoolkit::ParallelFor(pool, count, [&](int64_t i) {
    for (const KeyHead& head : groups[i]) {
      StoreQueries(p, head, parts.get() + head.first_row * p.depth, splits, size, dq);
    }
  });
}
