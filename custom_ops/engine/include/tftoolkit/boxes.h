// Boxes (x1, y1, x2, y2) of detections, in float32 whatever they are stored as.
//
// Whether two boxes overlap by more than a threshold must not depend on the machine. So sources that include this say
// before it that the compiler must not contract products and sums (a pragma: see batched_nms.cc).

#ifndef TFTOOLKIT_BOXES_H_
#define TFTOOLKIT_BOXES_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tftoolkit/float_types.h"

namespace tftoolkit {

struct Box {
  float x1, y1, x2, y2, area;
};

template <typename T>
TK_INLINE Box LoadBox(const T* from) {
  const float x1 = Load(from[0]), y1 = Load(from[1]), x2 = Load(from[2]), y2 = Load(from[3]);
  return {x1, y1, x2, y2, (x2 - x1) * (y2 - y1)};
}

inline bool HasNan(const Box& box) {
  return std::isnan(box.x1) || std::isnan(box.y1) || std::isnan(box.x2) || std::isnan(box.y2);
}

// Boxes as five arrays, so that loops over them fill vectors.
class BoxArrays {
 public:
  explicit BoxArrays(int64_t capacity) : memory_(5 * capacity), capacity_(capacity) {}

  void Set(int64_t i, const Box& box) {
    float* at = memory_.data() + i;
    for (float value : {box.x1, box.y1, box.x2, box.y2, box.area}) {
      *at = value;
      at += capacity_;
    }
  }

  void Move(int64_t from, int64_t to) {
    float* at = memory_.data();
    for (int array = 0; array < 5; ++array, at += capacity_) at[to] = at[from];
  }

  // x1, y1, x2, y2 and areas, from box `first` on.
  struct Pointers {
    const float *x1, *y1, *x2, *y2, *area;
  };
  Pointers From(int64_t first) const {
    const float* at = memory_.data() + first;
    return {at, at + capacity_, at + 2 * capacity_, at + 3 * capacity_, at + 4 * capacity_};
  }

 private:
  std::vector<float> memory_;
  int64_t capacity_;
};

// The area that two boxes share, over the area of both together. A box without an inside (x2 <= x1 or y2 <= y1) shares
// none: the result is 0, or NaN where there is no area at all, which is greater than no threshold.
TK_INLINE float Overlap(const Box& box, const BoxArrays::Pointers& others, int64_t i) {
  const float width = std::min(box.x2, others.x2[i]) - std::max(box.x1, others.x1[i]);
  const float height = std::min(box.y2, others.y2[i]) - std::max(box.y1, others.y1[i]);
  const float both = (width > 0.0f ? width : 0.0f) * (height > 0.0f ? height : 0.0f);
  return both / (box.area + others.area[i] - both);
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_BOXES_H_
