#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

enum class GeluKind : std::uint8_t { Tanh, Erf };

struct GeluForward {
  ConstView x;
  View y;
  GeluKind kind = GeluKind::Tanh;
};

struct GeluBackward {
  ConstView dy, x;
  GradTarget dx;
  GeluKind kind = GeluKind::Tanh;
};

inline constinit Kernel<GeluForward> gelu_forward{"gelu_forward"};
inline constinit Kernel<GeluBackward> gelu_backward{"gelu_backward"};

/// The Gaussian error linear unit, element by element:
///   Tanh: y = x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))   (GPT-2)
///   Erf:  y = x / 2 * (1 + erf(x / sqrt(2)))                        (S4D, GPT-NeoX)
/// x is float32, bfloat16 or float64 of any shape; y has its shape and dtype. Saves x.
/// Source: Hendrycks & Gimpel 2016, section 2.
Tensor gelu(const Context& ctx, const Tensor& x, GeluKind kind = GeluKind::Tanh);

}  // namespace graft
