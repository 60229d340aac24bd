#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

enum class ActivationKind : std::uint8_t { Silu, Softplus, Relu };

struct ActivationForward {
  ConstView x;
  View y;
  ActivationKind kind = ActivationKind::Silu;
};
struct ActivationBackward {
  ConstView dy, x;
  GradTarget dx;
  ActivationKind kind = ActivationKind::Silu;
};

inline constinit Kernel<ActivationForward> activation_forward{"activation_forward"};
inline constinit Kernel<ActivationBackward> activation_backward{"activation_backward"};

/// Element by element, where no other op takes the activation along:
///   Silu:     y = x / (1 + exp(-x))
///   Softplus: y = log(1 + exp(x)), and x itself above 20 (off by at most e^-20), as in the reference implementations
///   Relu:     y = max(x, 0), with slope 0 at 0; NaN stays NaN
/// x is float32, bfloat16 or float64 of any shape; y has its shape and dtype. Saves x.
/// Throws ArgumentError if x is not floating.
/// Source: Hendrycks & Gimpel 2016 (SiLU); Dugas et al. 2001 (softplus); Nair & Hinton 2010 (ReLU).
[[nodiscard]] Tensor activation(const Context& ctx, const Tensor& x, ActivationKind kind);

}  // namespace graft
