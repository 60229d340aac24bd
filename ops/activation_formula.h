#pragma once

#include <cstdint>
#include <type_traits>

#include "engine/dtype.h"
#include "ops/gelu_formula.h"
#include "ops/relu_formula.h"
#include "ops/silu_formula.h"
#include "ops/softplus_formula.h"

namespace graft {

/// Functions of one element: activation() applies them, linear maps take some of them along.
enum class Activation : std::uint8_t { None, Silu, Softplus, Relu, GeluTanh, GeluErf };

[[nodiscard]] constexpr const char* name_of(Activation activation) {
  switch (activation) {
    case Activation::None:
      return "none";
    case Activation::Silu:
      return "silu";
    case Activation::Softplus:
      return "softplus";
    case Activation::Relu:
      return "relu";
    case Activation::GeluTanh:
      return "gelu_tanh";
    case Activation::GeluErf:
      return "gelu_erf";
  }
  return "unknown";
}

template <Activation kActivation, class A>
[[nodiscard]] GRAFT_HD inline A activated(A x) {
  if constexpr (kActivation == Activation::Silu) return silu(x);
  if constexpr (kActivation == Activation::Softplus) return softplus(x);
  if constexpr (kActivation == Activation::Relu) return relu(x);
  if constexpr (kActivation == Activation::GeluTanh) return gelu_tanh(x);
  if constexpr (kActivation == Activation::GeluErf) return gelu_erf(x);
  return x;
}

template <Activation kActivation, class A>
[[nodiscard]] GRAFT_HD inline A activation_slope(A x) {
  if constexpr (kActivation == Activation::Silu) return silu_slope(x);
  if constexpr (kActivation == Activation::Softplus) return softplus_slope(x);
  if constexpr (kActivation == Activation::Relu) return relu_slope(x);
  if constexpr (kActivation == Activation::GeluTanh) return gelu_tanh_slope(x);
  if constexpr (kActivation == Activation::GeluErf) return gelu_erf_slope(x);
  return A{1};
}

/// Calls body with `activation`, if it is one of kActivations, as a std::integral_constant.
template <Activation... kActivations, class Body>
void with_one_of(Activation activation, const Body& body) {
  const auto call = [&](auto constant) {
    if (activation == decltype(constant)::value) body(constant);
  };
  (call(std::integral_constant<Activation, kActivations>{}), ...);
}
/// The same with any but None.
template <class Body>
void with_activation(Activation activation, const Body& body) {
  with_one_of<Activation::Silu, Activation::Softplus, Activation::Relu, Activation::GeluTanh, Activation::GeluErf>(
      activation, body);
}

}  // namespace graft
