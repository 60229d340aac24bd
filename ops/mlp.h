#pragma once

#include "engine/context.h"
#include "engine/tensor.h"
#include "ops/linear.h"

namespace graft {

struct MlpWeights {
  Tensor weight1, bias1;  // [hidden, in], [hidden] or empty
  Tensor weight2, bias2;  // [out, hidden], [out] or empty
};

/// y = W2 gelu(W1 x + b1) + b2 over the last axis, as one op: gelu, its slope and the gradient of b1 ride
/// along with the matrix products.
///   x        [..., in]       the context's compute dtype
///   weights  as for linear(): the compute dtype, stored extents
///   returns  [..., out]      the compute dtype
/// `activation` is GeluTanh (GPT-2) or GeluErf (GPT-NeoX). Saves x, the pre-activation h = W1 x + b1 and a = gelu(h),
/// both [..., hidden]. Gradients:
///   da = dy W2,  dh = da * gelu'(h),  dx = dh W1,
///   dW2 = dy^T a,  db2 = column sums of dy,  dW1 = dh^T x,  db1 = column sums of dh.
/// Throws ArgumentError where dtypes or shapes do not fit. Source: Vaswani et al. 2017, section 3.3, with the
/// activation of Hendrycks & Gimpel 2016.
Tensor mlp(const Context& ctx, const Tensor& x, const MlpWeights& weights,
           Activation activation = Activation::GeluTanh);
Tensor mlp(const Context& ctx, const Tensor& x, const MlpWeights& weights, Activation activation,
           const FusedEpilogues& fused);

}  // namespace graft
