// One sequence of a linear-chain CRF: the forward recursion and what follows from it going back.

#ifndef TFTOOLKIT_CRF_CHAIN_H_
#define TFTOOLKIT_CRF_CHAIN_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "loops.h"
#include "problem.h"

namespace tftoolkit {
namespace crf {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// A sum of products of powers that each are at most 1: below this, what was flushed to 0 may have been part of it.
constexpr double kTooSmall = 1e-280;

inline double FiniteOrZero(double x) { return x > -kInfinity && x < kInfinity ? x : 0.0; }

// e^(transition - the largest of its column), so that a step of the recursion is a product with a matrix.
struct Powers {
  int64_t states, width;
  std::vector<double> power, turned, top;  // [states, width], the same with rows and columns exchanged, [width]

  explicit Powers(const Problem& p)
      : states(p.states), width(Padded(p.states)), power(states * width), turned(states * width), top(width) {
    for (int64_t j = 0; j < states; ++j) {
      double largest = -kInfinity;
      for (int64_t i = 0; i < states; ++i) largest = std::max<double>(largest, p.transitions[i * states + j]);
      top[j] = FiniteOrZero(largest);
    }
    for (int64_t i = 0; i < states; ++i) {
      for (int64_t j = 0; j < states; ++j) {
        power[i * width + j] = turned[j * width + i] = WideExp(p.transitions[i * states + j] - top[j]);
      }
    }
  }
};

// Of one thread, for one sequence after the other.
class Chain {
 public:
  // `memory` is the thread's, kept from call to call: fresh pages cost time. `keeps`: Backward will be called.
  Chain(const Problem& problem, const Powers& powers, std::vector<double>& memory, bool keeps)
      : p_(problem), powers_(powers), width_(powers.width), rows_(keeps ? std::max<int64_t>(2, problem.time) : 2) {
    const int64_t size = (2 * rows_ + 5) * width_;
    if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
    alpha_ = memory.data(), sum_ = alpha_ + rows_ * width_, logits_ = sum_ + rows_ * width_;
    power_ = logits_ + width_, ratio_ = power_ + width_, marginal_ = ratio_ + width_, before_ = marginal_ + width_;
    std::fill_n(logits_, width_, 0.0);
  }

  // The logarithm of the sum over all paths of e^score, of a sequence that is not empty.
  template <typename T>
  double Forward(const T* logits, int64_t length) {
    ReadRow(logits, logits_, p_.states);
    for (int64_t j = 0; j < width_; ++j) Alpha(0)[j] = j < p_.states ? logits_[j] + p_.StartOf(j) : -kInfinity;
    double shifts = 0;
    for (int64_t t = 1; t < length; ++t) {
      const double shift = FiniteOrZero(Largest(Alpha(t - 1), p_.states));
      ShiftAndExp(Alpha(t - 1), shift, power_, width_);
      shifts += shift;
      ReadRow(logits + t * p_.states, logits_, p_.states);
      Product(power_, powers_.power.data(), Sum(t), p_.states, width_);
      AddLog(logits_, powers_.top.data(), Sum(t), Alpha(t), width_);
      if (!(Smallest(Sum(t), p_.states) >= kTooSmall)) StepExactly(t);
    }
    last_ = 0;
    last_ = LogSum([&](int64_t j) { return Last(j, length); });
    return shifts + last_;
  }

  // After Forward, if some path is possible: calls visit(t, the probabilities of the states at t, times `scale`), the
  // last t first. `pairs` and `direct` (or nullptr), [states, width], get what adds up to those of neighbours: with
  // p_i = e^alpha_i before t and r_j = marginal_j / sum_j, that of (i, j) is p_i power_ij r_j; p_i r_j is added to
  // `pairs`, for columns that took another way the whole to `direct`.
  template <typename Visit>
  void Backward(int64_t length, double scale, double* pairs, double* direct, const Visit& visit) {
    for (int64_t j = 0; j < width_; ++j) {
      marginal_[j] = j < p_.states ? scale * std::exp(Last(j, length)) : 0.0;
    }
    for (int64_t t = length - 1;; --t) {
      visit(t, marginal_);
      if (t == 0) return;
      ShiftAndExp(Alpha(t - 1), 0, power_, width_);
      Divide(marginal_, Sum(t), ratio_, width_);
      if (pairs != nullptr) AddOuter(power_, ratio_, pairs, p_.states, width_);
      Product(ratio_, powers_.turned.data(), before_, p_.states, width_);
      Multiply(power_, before_, before_, width_);
      AddExactPairs(t, direct);
      std::swap(marginal_, before_);
    }
  }

 private:
  double* Alpha(int64_t t) { return alpha_ + t % rows_ * width_; }
  double* Sum(int64_t t) { return sum_ + t % rows_ * width_; }

  // The logarithm of a state's probability at the end, once last_ is known.
  double Last(int64_t j, int64_t length) { return Alpha(length - 1)[j] + p_.EndOf(j) - last_; }

  // log sum_i e^(alpha_i + transition_ij), without what Product leaves out.
  double Before(int64_t t, int64_t j) {
    return LogSum([&](int64_t i) { return Arrival(t, i, j); });
  }

  double Arrival(int64_t t, int64_t i, int64_t j) { return Alpha(t - 1)[i] + p_.transitions[i * p_.states + j]; }

  template <typename Term>
  double LogSum(const Term& term) const {
    double largest = -kInfinity, sum = 0;
    for (int64_t i = 0; i < p_.states; ++i) largest = std::max(largest, term(i));
    if (largest == -kInfinity || largest == kInfinity) largest = 0;
    for (int64_t i = 0; i < p_.states; ++i) sum += std::exp(term(i) - largest);
    return largest + std::log(sum);
  }

  // The states whose sum is too small to be trusted; it becomes 0, as a mark.
  void StepExactly(int64_t t) {
    for (int64_t j = 0; j < p_.states; ++j) {
      if (!(Sum(t)[j] < kTooSmall)) continue;
      Sum(t)[j] = 0;
      Alpha(t)[j] = logits_[j] + Before(t, j);
    }
  }

  void AddExactPairs(int64_t t, double* direct) {
    for (int64_t j = 0; j < p_.states; ++j) {
      if (Sum(t)[j] != 0 || marginal_[j] == 0) continue;
      const double before = Before(t, j);
      for (int64_t i = 0; i < p_.states; ++i) {
        const double pair = marginal_[j] * std::exp(Arrival(t, i, j) - before);
        before_[i] += pair;
        if (direct != nullptr) direct[i * width_ + j] += pair;
      }
    }
  }

  const Problem& p_;
  const Powers& powers_;
  int64_t width_, rows_;
  double *alpha_, *sum_, *logits_, *power_, *ratio_, *marginal_, *before_;
  double last_ = 0;
};

}  // namespace crf
}  // namespace tftoolkit

#endif  // TFTOOLKIT_CRF_CHAIN_H_
