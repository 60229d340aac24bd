#pragma once

#include <cmath>
#include <type_traits>

#include "engine/dtype.h"
#include "ops/exponential_formula.h"

namespace graft {

// SiLU (swish) and its slope for one element, the same source on host and device. On the device exponential and
// quotient of floats are the hardware's approximations, good to about 1e-7 of the result, which keep kernels that read
// 2 bytes an element bound by memory.

/// 1 / (1 + exp(-x)).
template <class A>
[[nodiscard]] GRAFT_HD inline A sigmoid(A x) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<A, float>) return __fdividef(1.F, 1.F + __expf(-x));
  return A{1} / (A{1} + std::exp(-x));
#else
  return A{1} / (A{1} + exponential(-x));
#endif
}

/// x sigmoid(x).
template <class A>
[[nodiscard]] GRAFT_HD inline A silu(A x) {
  return x * sigmoid(x);
}

/// d/dx x sigmoid(x) = sigmoid(x) (1 + x (1 - sigmoid(x))), given x and sigmoid(x).
template <class A>
[[nodiscard]] GRAFT_HD inline A silu_slope(A x, A sigmoid_of_x) {
  return sigmoid_of_x * (A{1} + x * (A{1} - sigmoid_of_x));
}

template <class A>
[[nodiscard]] GRAFT_HD inline A silu_slope(A x) {
  return silu_slope(x, sigmoid(x));
}

}  // namespace graft
