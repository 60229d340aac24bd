#pragma once

#include "engine/dtype.h"

namespace graft {

/// max(x, 0); the comparison is this way round so that NaN comes through.
template <class A>
[[nodiscard]] GRAFT_HD inline A relu(A x) {
  return x < A(0) ? A(0) : x;
}

/// Its slope; 0 at 0.
template <class A>
[[nodiscard]] GRAFT_HD inline A relu_slope(A x) {
  return x > A(0) ? A(1) : A(0);
}

}  // namespace graft
