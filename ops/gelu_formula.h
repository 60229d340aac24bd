#pragma once

#include <cmath>

#include "engine/dtype.h"

namespace graft {

// The Gaussian error linear unit and its slope for one element, the same source on host and device.
// The tanh form is written with a sigmoid, x / (1 + exp(-2u)) for x / 2 * (1 + tanh(u)): no cancellation where x is
// very negative, and one exponential instead of a tanh.

namespace gelu_detail {
template <class A>
inline constexpr A kTwoSqrtTwoOverPi = static_cast<A>(1.59576912160573071176);  // 2 sqrt(2 / pi)
template <class A>
inline constexpr A kCubic = static_cast<A>(0.044715);
template <class A>
inline constexpr A kSqrtHalf = static_cast<A>(0.70710678118654752440);
template <class A>
inline constexpr A kNormalDensity = static_cast<A>(0.39894228040143267794);  // 1 / sqrt(2 pi)
}  // namespace gelu_detail

template <class A>
[[nodiscard]] GRAFT_HD inline A gelu_tanh(A x) {
  using namespace gelu_detail;
  const A twice_u = kTwoSqrtTwoOverPi<A> * (x + kCubic<A> * x * x * x);
  return x / (A{1} + std::exp(-twice_u));
}

template <class A>
[[nodiscard]] GRAFT_HD inline A gelu_tanh_slope(A x) {
  using namespace gelu_detail;
  const A twice_u = kTwoSqrtTwoOverPi<A> * (x + kCubic<A> * x * x * x);
  const A sigmoid = A{1} / (A{1} + std::exp(-twice_u));
  return sigmoid + x * sigmoid * (A{1} - sigmoid) * kTwoSqrtTwoOverPi<A> * (A{1} + A{3} * kCubic<A> * x * x);
}

template <class A>
[[nodiscard]] GRAFT_HD inline A gelu_erf(A x) {
  using namespace gelu_detail;
  return A(0.5) * x * std::erfc(-x * kSqrtHalf<A>);
}

template <class A>
[[nodiscard]] GRAFT_HD inline A gelu_erf_slope(A x) {
  using namespace gelu_detail;
  return A(0.5) * std::erfc(-x * kSqrtHalf<A>) + x * kNormalDensity<A> * std::exp(A(-0.5) * x * x);
}

}  // namespace graft
