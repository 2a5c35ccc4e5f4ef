// How the tensors of both ops lie in a call, for their kernels on the CPU and on CUDA: the inputs are the lists w, m, v
// (the master) and g, the outputs the same without g, in place.

#ifndef TFTOOLKIT_ADAMW_LISTS_H_
#define TFTOOLKIT_ADAMW_LISTS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/op.h"

namespace adamw {

// A weight, or a part of one.
template <typename T, typename G>
struct Weight {
  T* w;
  float* m;
  float* v;
  float* master;  // null: none
  const G* g;
  int64_t n;
  float rate_factor, decay;

  Weight Part(int64_t i, int64_t size) const {
    return {w + i, m + i, v + i, master ? master + i : nullptr, g + i, size, rate_factor, decay};
  }
};

template <bool kMaster>
class Lists {
 public:
  Lists(const ffi::RemainingArgs& inputs, const ffi::RemainingRets& outputs, ffi::Span<const float> rate_factors,
        ffi::Span<const float> decays)
      : inputs_(inputs), outputs_(outputs), rate_factors_(rate_factors), decays_(decays) {}

  size_t count() const { return outputs_.size() / kKept; }

  ffi::Error Check() const {
    if (rate_factors_.size() == count() && decays_.size() == count()) return ffi::Error::Success();
    return ffi::Error::InvalidArgument("each of " + std::to_string(count()) +
                                       " weights needs a rate factor and a decay, but there are " +
                                       std::to_string(rate_factors_.size()) + " and " + std::to_string(decays_.size()));
  }

  // Returns run(T(), G()) for the types of weights and gradients.
  template <typename Run>
  ffi::Error WithTypes(const Run& run) const {
    return tftoolkit::WithFloatType("AdamW", gradient(0).element_type(), [&](auto g) {
      return tftoolkit::WithFloatType("AdamW", (*outputs_.get<ffi::AnyBuffer>(0))->element_type(), [&](auto w) {
        if constexpr (kMaster && sizeof w == sizeof(float)) {
          return ffi::Error::InvalidArgument("a float32 weight is its own master");  // the schema refuses it, too
        } else {
          return run(w, g);
        }
      });
    });
  }

  template <typename T, typename G>
  Weight<T, G> At(size_t i) const {
    const ffi::AnyBuffer g = gradient(i);
    return {static_cast<T*>(Kept(0, i)),
            static_cast<float*>(Kept(1, i)),
            static_cast<float*>(Kept(2, i)),
            kMaster ? static_cast<float*>(Kept(3, i)) : nullptr,
            tftoolkit::Data<G>(g),
            static_cast<int64_t>(g.element_count()),
            rate_factors_[i],
            decays_[i]};
  }

 private:
  static constexpr size_t kKept = kMaster ? 4 : 3;  // lists of outputs

  ffi::AnyBuffer gradient(size_t i) const { return *inputs_.get<ffi::AnyBuffer>(kKept * count() + i); }
  void* Kept(size_t list, size_t i) const {
    return (*outputs_.get<ffi::AnyBuffer>(list * count() + i))->untyped_data();
  }

  const ffi::RemainingArgs& inputs_;
  const ffi::RemainingRets& outputs_;
  ffi::Span<const float> rate_factors_, decays_;
};

}  // namespace adamw

// What follows the thread pool or the stream.
#define TK_ADAMW_ARGUMENTS                          \
  Arg<ffi::Buffer<ffi::PRED>>()                     \
      .Arg<ffi::Buffer<ffi::F32>>()                 \
      .Arg<ffi::Buffer<ffi::F32>>()                 \
      .RemainingArgs()                              \
      .RemainingRets()                              \
      .Attr<double>("beta_1")                       \
      .Attr<double>("beta_2")                       \
      .Attr<float>("epsilon")                       \
      .Attr<ffi::Span<const float>>("rate_factors") \
      .Attr<ffi::Span<const float>>("weight_decays")

#endif  // TFTOOLKIT_ADAMW_LISTS_H_
