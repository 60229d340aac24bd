#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "engine/dtype.h"
#include "engine/error.h"
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

/// Calls body with `activation` as a std::integral_constant. Throws DeviceError if it is none of kActivations: there is
/// no kernel for it, which what an op checks should have kept from here.
template <Activation... kActivations, class Body>
void with_one_of(Activation activation, const Body& body) {
  const auto call = [&](auto constant) {
    if (activation != decltype(constant)::value) return false;
    body(constant);
    return true;
  };
  if ((call(std::integral_constant<Activation, kActivations>{}) || ...)) return;
  std::string expected;
  ((expected += std::string(expected.empty() ? "" : ", ") + name_of(kActivations)), ...);
  throw DeviceError("internal error: activation " + std::to_string(static_cast<int>(activation)) + " (" +
                    name_of(activation) + ") has no kernel here, expected one of: " + expected);
}
/// The same with any but None.
template <class Body>
void with_activation(Activation activation, const Body& body) {
  with_one_of<Activation::Silu, Activation::Softplus, Activation::Relu, Activation::GeluTanh, Activation::GeluErf>(
      activation, body);
}

}  // namespace graft
