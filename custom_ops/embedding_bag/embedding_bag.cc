// Bags of embeddings and their gradients on the CPU. Of a bag with ids i_1 … i_n (-1 counts for nothing) and weights w,
// in float32:
//
//   sum: y = sum w_j table[i_j]          mean: y = sum w_j table[i_j] / sum w_j
//   dtable[i_j] += s_j dy                s_j = w_j, for the mean w_j / sum w
//   dw_j = table[i_j] . dy               for the mean (table[i_j] . dy - sum w_k table[i_k] . dy / sum w) / sum w
//   max: y = max_j table[i_j]            dtable[i_j] += dy where i_j is the first of the largest
//
// The floor is memory traffic. Forward reads a row of depth elements at any place for each id and writes one for each
// bag; for 81,920 ids of 64 floats that is 21 MB, each row four lines of the cache that nobody expects, so that the
// time is one of waiting unless many rows are asked for at once: rows are prefetched kAhead ids before they are added.
// A gather writes these 21 MB first and then reads them again. The gradient of the table is sparse: a row per id, 21 MB
// that are written once; dy stays in the cache. Ids are checked where they are used.
//
// Bags are cut into tasks by their borders alone, and each is one thread's, so the result does not depend on the number
// of threads.

#include <cstdint>
#include <vector>

#include "bags.h"
#include "rows.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::Data;
using tftoolkit::Half;
using tftoolkit::Load;
using tftoolkit::Store;
using tftoolkit::embedding_bag::Bags;
using tftoolkit::embedding_bag::FirstBad;
using tftoolkit::embedding_bag::Lookup;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace bag = tftoolkit::embedding_bag;

constexpr int64_t kElementsPerTask = 1 << 15;  // tens of µs
int64_t IdsPerTask(int64_t depth) { return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, depth)); }

// run(T(), Id()) for the dtypes of the floats and of the ids.
template <typename Run>
ffi::Error WithTypes(const char* op, const ffi::AnyBuffer& floats, const ffi::AnyBuffer& ids, const Run& run) {
  return tftoolkit::WithFloatType(op, floats.element_type(), [&](auto type) {
    return tftoolkit::WithIntegerType(op, ids.element_type(), [&](auto id) { return run(type, id); });
  });
}

// What a mean is divided by turns into a factor; no ids, or weights that add up to 0, give zeros.
float MeanScale(float total) { return total == 0 ? 0 : 1 / total; }

ffi::Error EmbeddingBag(ffi::ThreadPool pool, ffi::AnyBuffer table, ffi::AnyBuffer values, ffi::AnyBuffer row_splits,
                        ffi::AnyBuffer given_weights, Result y, bool has_weights, bool mean, bool padded) {
  Bags bags;
  const int64_t ids_count = values.element_count(), depth = table.dimensions()[1];
  if (auto error = bag::ReadBags("EmbeddingBag", row_splits, ids_count, bags); error.failure()) return error;
  const float* weights = has_weights ? Data<float>(given_weights) : nullptr;
  return WithTypes("EmbeddingBag", table, values, [&](auto type, auto id) {
    using T = decltype(type);
    FirstBad bad;
    const auto* ids = Data<decltype(id)>(values);
    const Lookup<T, decltype(id)> lookup{Data<T>(table), table.dimensions()[0], depth, ids, padded, &bad};
    T* outputs = Data<T>(y);
    bag::ParallelBags(pool, bags, IdsPerTask(depth), [&](int64_t first, int64_t last) {
      std::vector<float> sum(depth);
      for (int64_t b = first; b < last; ++b) {
        const float total =
            bag::Sum(lookup, weights, bags.borders[b], bags.borders[b + 1], bags.borders[last], sum.data());
        bag::Round(sum.data(), mean ? MeanScale(total) : 1, outputs + b * depth, depth);
      }
    });
    return bad.Error(ids, table.dimensions()[0], padded);
  });
}

// The factor of each id's row in its bag; 0 for padding.
template <typename Id>
float TotalWeight(const Id* ids, const float* weights, int64_t begin, int64_t end) {
  float total = 0;
  for (int64_t j = begin; j < end; ++j) total += ids[j] < 0 ? 0 : weights ? weights[j] : 1;
  return total;
}

ffi::Error EmbeddingBagGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer values, ffi::AnyBuffer row_splits,
                            ffi::AnyBuffer given_weights, Result drows, bool has_weights, bool mean) {
  Bags bags;
  const int64_t depth = dy.dimensions()[1];
  if (auto error = bag::ReadBags("EmbeddingBagGrad", row_splits, values.element_count(), bags); error.failure()) {
    return error;
  }
  const float* weights = has_weights ? Data<float>(given_weights) : nullptr;
  return WithTypes("EmbeddingBagGrad", dy, values, [&](auto type, auto id) {
    using T = decltype(type);
    const auto* ids = Data<decltype(id)>(values);
    const T* upstream = Data<T>(dy);
    T* gradients = Data<T>(drows);
    bag::ParallelBags(pool, bags, IdsPerTask(depth), [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = bags.borders[b], end = bags.borders[b + 1];
        const float scale = mean ? MeanScale(TotalWeight(ids, weights, begin, end)) : 1;
        bag::Scale(upstream + b * depth, ids, weights, scale, begin, end, gradients, depth);
      }
    });
    return ffi::Error::Success();
  });
}

ffi::Error EmbeddingBagWeightsGrad(ffi::ThreadPool pool, ffi::AnyBuffer table, ffi::AnyBuffer values,
                                   ffi::AnyBuffer row_splits, ffi::AnyBuffer weights, ffi::AnyBuffer dy,
                                   Result dweights, bool mean, bool padded) {
  Bags bags;
  const int64_t ids_count = values.element_count(), depth = table.dimensions()[1];
  if (auto error = bag::ReadBags("EmbeddingBagWeightsGrad", row_splits, ids_count, bags); error.failure()) return error;
  const float* given = Data<float>(weights);
  float* gradients = Data<float>(dweights);
  return WithTypes("EmbeddingBagWeightsGrad", table, values, [&](auto type, auto id) {
    using T = decltype(type);
    FirstBad bad;
    const auto* ids = Data<decltype(id)>(values);
    const Lookup<T, decltype(id)> lookup{Data<T>(table), table.dimensions()[0], depth, ids, padded, &bad};
    const T* upstream = Data<T>(dy);
    bag::ParallelBags(pool, bags, IdsPerTask(depth), [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = bags.borders[b], end = bags.borders[b + 1];
        std::fill(gradients + begin, gradients + end, 0.0f);
        float weighted = 0, total = 0;
        lookup.Each(begin, end, bags.borders[last], 0, depth, [&](int64_t j, const T* row) {
          gradients[j] = bag::Dot(row, upstream + b * depth, depth);
          weighted += given[j] * gradients[j];
          total += given[j];
        });
        if (!mean) continue;
        const float scale = MeanScale(total);
        for (int64_t j = begin; j < end; ++j) {
          if (ids[j] >= 0) gradients[j] = (gradients[j] - weighted * scale) * scale;
        }
      }
    });
    return bad.Error(ids, table.dimensions()[0], padded);
  });
}

// `which`: the place within the bag that the largest comes from, -1 in a bag without ids.
ffi::Error EmbeddingBagMax(ffi::ThreadPool pool, ffi::AnyBuffer table, ffi::AnyBuffer values, ffi::AnyBuffer row_splits,
                           Result y, Result which, bool padded) {
  Bags bags;
  const int64_t ids_count = values.element_count(), depth = table.dimensions()[1];
  if (auto error = bag::ReadBags("EmbeddingBagMax", row_splits, ids_count, bags); error.failure()) return error;
  if (ids_count > std::numeric_limits<int32_t>::max()) {
    return ffi::Error::InvalidArgument("mode max takes at most 2147483647 values, got " + std::to_string(ids_count));
  }
  return WithTypes("EmbeddingBagMax", table, values, [&](auto type, auto id) {
    using T = decltype(type);
    FirstBad bad;
    const auto* ids = Data<decltype(id)>(values);
    const Lookup<T, decltype(id)> lookup{Data<T>(table), table.dimensions()[0], depth, ids, padded, &bad};
    bag::ParallelBags(pool, bags, IdsPerTask(depth), [&](int64_t first, int64_t last) {
      std::vector<float> best(depth);
      for (int64_t b = first; b < last; ++b) {
        int32_t* places = Data<int32_t>(which) + b * depth;
        bool empty = true;
        lookup.Each(bags.borders[b], bags.borders[b + 1], bags.borders[last], 0, depth, [&](int64_t j, const T* row) {
          const auto place = static_cast<int32_t>(j - bags.borders[b]);
          if (empty) {
            for (int64_t i = 0; i < depth; ++i) best[i] = Load(row[i]);
            std::fill_n(places, depth, place);
          } else {
            bag::Max(row, place, best.data(), places, depth);
          }
          empty = false;
        });
        if (empty) {
          std::fill(best.begin(), best.end(), 0.0f);
          std::fill_n(places, depth, -1);
        }
        bag::Round(best.data(), 1, Data<T>(y) + b * depth, depth);
      }
    });
    return bad.Error(ids, table.dimensions()[0], padded);
  });
}

ffi::Error EmbeddingBagMaxGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer values,
                               ffi::AnyBuffer row_splits, ffi::AnyBuffer which, Result drows) {
  Bags bags;
  const int64_t depth = dy.dimensions()[1];
  if (auto error = bag::ReadBags("EmbeddingBagMaxGrad", row_splits, values.element_count(), bags); error.failure()) {
    return error;
  }
  return tftoolkit::WithFloatType("EmbeddingBagMaxGrad", dy.element_type(), [&](auto type) {
    using T = decltype(type);
    bag::ParallelBags(pool, bags, IdsPerTask(depth), [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int32_t* places = Data<int32_t>(which) + b * depth;
        for (int64_t j = bags.borders[b]; j < bags.borders[b + 1]; ++j) {
          const auto place = static_cast<int32_t>(j - bags.borders[b]);
          bag::Chosen(Data<T>(dy) + b * depth, places, place, Data<T>(drows) + j * depth, depth);
        }
      }
    });
    return ffi::Error::Success();
  });
}

}  // namespace

#define TK_IN .Arg<ffi::AnyBuffer>()
#define TK_OUT .Ret<ffi::AnyBuffer>()

XLA_FFI_DEFINE_HANDLER(EmbeddingBagCpu, EmbeddingBag,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_OUT.Attr<bool>("has_weights")
                           .Attr<bool>("mean")
                           .Attr<bool>("padded"));
XLA_FFI_DEFINE_HANDLER(EmbeddingBagGradCpu, EmbeddingBagGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_OUT.Attr<bool>("has_weights")
                           .Attr<bool>("mean"));
XLA_FFI_DEFINE_HANDLER(
    EmbeddingBagWeightsGradCpu, EmbeddingBagWeightsGrad,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_IN TK_OUT.Attr<bool>("mean").Attr<bool>(
        "padded"));
XLA_FFI_DEFINE_HANDLER(EmbeddingBagMaxCpu, EmbeddingBagMax,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_OUT TK_OUT.Attr<bool>("padded"));
XLA_FFI_DEFINE_HANDLER(EmbeddingBagMaxGradCpu, EmbeddingBagMaxGrad,
                       ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() TK_IN TK_IN TK_IN TK_IN TK_OUT);

#define TK_TYPES "<T: f32 | bf16 | f16, I: i32 | i64, S: i64 | i32>"

TK_OP(EmbeddingBag, TK_TYPES
      "(table: T[rows depth], values: I[ids], row_splits: S[bags+1], weights?: f32[ids], *, mean: bool = False,"
      " padded: bool = False) -> (y: T[bags depth])");
TK_OP(EmbeddingBagGrad, TK_TYPES
      "(dy: T[bags depth], values: I[ids], row_splits: S[bags+1], weights?: f32[ids], *, mean: bool = False)"
      " -> (drows: T[ids depth])");
TK_OP(EmbeddingBagWeightsGrad, TK_TYPES
      "(table: T[rows depth], values: I[ids], row_splits: S[bags+1], weights: f32[ids], dy: T[bags depth], *,"
      " mean: bool = False, padded: bool = False) -> (dweights: f32[ids])");
TK_OP(EmbeddingBagMax, TK_TYPES
      "(table: T[rows depth], values: I[ids], row_splits: S[bags+1], *, padded: bool = False)"
      " -> (y: T[bags depth], which: i32[bags depth])");
TK_OP(EmbeddingBagMaxGrad, TK_TYPES
      "(dy: T[bags depth], values: I[ids], row_splits: S[bags+1], which: i32[bags depth]) -> (drows: T[ids depth])");
TK_KERNEL(EmbeddingBag, CPU, EmbeddingBagCpu);
TK_KERNEL(EmbeddingBagGrad, CPU, EmbeddingBagGradCpu);
TK_KERNEL(EmbeddingBagWeightsGrad, CPU, EmbeddingBagWeightsGradCpu);
TK_KERNEL(EmbeddingBagMax, CPU, EmbeddingBagMaxCpu);
TK_KERNEL(EmbeddingBagMaxGrad, CPU, EmbeddingBagMaxGradCpu);
