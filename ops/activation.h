#pragma once

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"
#include "ops/activation_formula.h"

namespace graft {

struct ActivationForward {
  ConstView x;
  View y;
  Activation kind = Activation::Silu;  // not None
};
struct ActivationBackward {
  ConstView dy, x;
  GradTarget dx;
  Activation kind = Activation::Silu;
};

inline constinit Kernel<ActivationForward> activation_forward{"activation_forward"};
inline constinit Kernel<ActivationBackward> activation_backward{"activation_backward"};

/// Element by element, where no other op takes the activation along:
///   Silu:     y = x / (1 + exp(-x))
///   Softplus: y = log(1 + exp(x)), and x itself above 20 (off by at most e^-20), as in the reference implementations
///   Relu:     y = max(x, 0), with slope 0 at 0; NaN stays NaN
///   GeluTanh: y = x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))   (GPT-2)
///   GeluErf:  y = x / 2 * (1 + erf(x / sqrt(2)))                        (S4D, GPT-NeoX)
/// x is float32, bfloat16 or float64 of any shape; y has its shape and dtype. Saves x.
/// Throws ArgumentError if x is not floating, or for None, which is x itself.
/// Source: Hendrycks & Gimpel 2016 (SiLU, GELU); Dugas et al. 2001 (softplus); Nair & Hinton 2010 (ReLU).
[[nodiscard]] Tensor activation(const Context& ctx, const Tensor& x, Activation kind);

}  // namespace graft
