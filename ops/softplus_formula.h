#pragma once

#include <cmath>

#include "engine/dtype.h"
#include "ops/exponential_formula.h"
#include "ops/silu_formula.h"

namespace graft {

// Softplus, its slope and limits of step sizes for one element, the same source on host and device; above 20 the
// identity.

template <class A>
[[nodiscard]] GRAFT_HD inline A softplus(A x) {
#if defined(__CUDA_ARCH__)
  return x > A(20) ? x : std::log1p(std::exp(x));
#else
  return x > A(20) ? x : log1p_exponential(x);
#endif
}

template <class A>
[[nodiscard]] GRAFT_HD inline A softplus_slope(A x) {
  return x > A(20) ? A{1} : sigmoid(x);
}

/// v within [low, high]; NaN stays NaN, which the minimum and maximum functions of floating point would replace.
template <class A>
[[nodiscard]] GRAFT_HD inline A clamped(A v, A low, A high) {
  return v < low ? low : (v > high ? high : v);
}

}  // namespace graft
