#pragma once

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct GluForward {
  ConstView x;  // [rows, 2H]
  View y;       // [rows, H]
};
struct GluBackward {
  ConstView dy, x;
  GradTarget dx;
};

inline constinit Kernel<GluForward> glu_forward{"glu_forward"};
inline constinit Kernel<GluBackward> glu_backward{"glu_backward"};

/// The gated linear unit: y = a sigmoid(b), a and b being the first and the second half of a row.
///   x        [..., 2H]  float32, bfloat16 or float64
///   returns  [..., H]   in x's dtype; arithmetic is float32 (float64 when x is)
/// Saves x. Throws ArgumentError if the last axis is odd or empty, or x is not floating.
/// Source: Dauphin et al. 2017, section 2.1, equation 1.
[[nodiscard]] Tensor glu(const Context& ctx, const Tensor& x);

}  // namespace graft
