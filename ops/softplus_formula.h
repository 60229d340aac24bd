#pragma once

#include <cmath>

#include "engine/dtype.h"
#include "ops/silu_formula.h"

namespace graft {

// Softplus and its slope for one element, the same source on host and device; above 20 the identity.

template <class A>
[[nodiscard]] GRAFT_HD inline A softplus(A x) {
  return x > A(20) ? x : std::log1p(std::exp(x));
}

template <class A>
[[nodiscard]] GRAFT_HD inline A softplus_slope(A x) {
  return x > A(20) ? A{1} : sigmoid(x);
}

}  // namespace graft
