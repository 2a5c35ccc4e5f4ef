// From tensors to the problem, with all that can be wrong with them beside what the schemas see to.

#ifndef TFTOOLKIT_FLASH_ATTENTION_SEQUENCES_H_
#define TFTOOLKIT_FLASH_ATTENTION_SEQUENCES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "problem.h"
#include "tftoolkit/op.h"

namespace tftoolkit {
namespace attention {

struct Settings {
  bool causal;
  int64_t window;
  float scale, softcap;
};

// The shapes of q [..., heads, depth], k [..., kv_heads, depth] and v [..., kv_heads, value_depth]; the schema has seen
// to it that they have one dtype, and which.
inline Problem Tensors(const ffi::AnyBuffer& q, const ffi::AnyBuffer& k, const ffi::AnyBuffer& v, const Settings& s) {
  const size_t last = q.dimensions().size() - 1;
  const ffi::DataType dtype = q.element_type();
  const Type type = dtype == ffi::F32 ? Type::kFloat : dtype == ffi::BF16 ? Type::kBFloat16 : Type::kHalf;
  return {{type,
           q.untyped_data(),
           k.untyped_data(),
           v.untyped_data(),
           {},
           q.dimensions()[last - 1],
           k.dimensions()[last - 1],
           q.dimensions()[last],
           v.dimensions()[last],
           s.causal,
           s.window,
           s.scale,
           s.softcap},
          {}};
}

inline std::string CheckHeads(int64_t heads, int64_t kv_heads) {
  if (kv_heads == 0 ? heads == 0 : heads % kv_heads == 0) return "";
  return "q has " + std::to_string(heads) + " heads, which must be a multiple of the " + std::to_string(kv_heads) +
         " of k and v";
}

// [batch, length, heads, depth], with all that may be given; returns what is wrong with it. `lengths` may be null.
inline std::string Batched(const ffi::AnyBuffer& q, const ffi::AnyBuffer& k, const ffi::AnyBuffer* bias,
                           const int32_t* lengths, Problem& p) {
  const int64_t batch = q.dimensions()[0], queries = q.dimensions()[1], keys = k.dimensions()[1];
  if (std::string wrong = CheckHeads(p.heads, p.kv_heads); !wrong.empty()) return wrong;
  if (bias != nullptr) {
    const auto dims = bias->dimensions();
    const int64_t wanted[] = {batch, p.heads, queries};
    for (int i = 0; i < 3; ++i) {
      if (dims[i] != 1 && dims[i] != wanted[i]) {
        return "dimension " + std::to_string(i) + " of bias is " + std::to_string(dims[i]) + ", but must be 1 or " +
               std::to_string(wanted[i]);
      }
    }
    const int64_t strides[] = {dims[1] * dims[2] * keys, dims[2] * keys, keys};
    p.bias = {bias->untyped_data(), dims[0] == 1 ? 0 : strides[0], dims[1] == 1 ? 0 : strides[1],
              dims[2] == 1 ? 0 : strides[2]};
  }
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t valid = lengths == nullptr ? keys : lengths[i];
    if (valid < 0 || valid > keys) {
      return "lengths[" + std::to_string(i) + "] is " + std::to_string(valid) + ", but must be from 0 to the " +
             std::to_string(keys) + " keys";
    }
    p.sequences.push_back({queries, keys, valid, i * queries, i * keys, i});
  }
  return "";
}

// `count` sequences one behind the other: their borders, from 0 to the number of rows.
inline std::string Packed(const ffi::AnyBuffer& q, const ffi::AnyBuffer& k, const int32_t* q_borders,
                          const int32_t* k_borders, int64_t count, Problem& p) {
  if (std::string wrong = CheckHeads(p.heads, p.kv_heads); !wrong.empty()) return wrong;
  const std::pair<const int32_t*, int64_t> both[] = {{q_borders, q.dimensions()[0]}, {k_borders, k.dimensions()[0]}};
  if (both[0].second == 0) {  // no query: whatever k is, its gradients are zeros
    p.sequences.push_back({0, k.dimensions()[0], 0, 0, 0, 0});
    return "";
  }
  for (int side = 0; side < 2; ++side) {
    const auto [borders, rows] = both[side];
    const std::string name = side == 0 ? "cu_seqlens_q" : "cu_seqlens_k";
    if (count < 0 || borders[0] != 0 || borders[count] != rows) {
      return name + " must begin with 0 and end with the " + std::to_string(rows) + " rows";
    }
    for (int64_t i = 0; i < count; ++i) {
      if (borders[i] > borders[i + 1]) return name + " falls at " + std::to_string(i + 1) + "; it must not";
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const int32_t *of_q = both[0].first + i, *of_k = both[1].first + i;
    const int64_t keys = of_k[1] - of_k[0];
    p.sequences.push_back({of_q[1] - of_q[0], keys, keys, of_q[0], of_k[0], i});
  }
  return "";
}

}  // namespace attention
}  // namespace tftoolkit

#endif  // TFTOOLKIT_FLASH_ATTENTION_SEQUENCES_H_
