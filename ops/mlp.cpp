#include "ops/mlp.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {
namespace {

/// What the backward pass of an MLP needs.
struct Saved {
  Tensor x, pre, hidden, weight1, weight2;
  GradRef bias1, bias2;
  Activation activation;
  FusedEpilogues fused;
};

void backward(const Context& ctx, const Saved& saved, Grads& grads, const GradRef& output) {
  const ConstView dy = grads.of(output);
  const std::int64_t rows = saved.x.shape().rows();
  const Precision precision = ctx.precision;

  const GradTarget dweight2 = grads.into(saved.weight2);
  const GradTarget dbias2 = grads.into(saved.bias2);
  if (dweight2 || dbias2) {
    const Tensor scratch = column_sum_scratch(ctx, dbias2, rows);
    linear_backward_weight(ctx,
                           {dy, saved.hidden.view(), dweight2, dbias2, scratch.mutable_view(), precision, saved.fused});
  }

  const GradTarget dweight1 = grads.into(saved.weight1);
  const GradTarget dbias1 = grads.into(saved.bias1);
  if (!dweight1 && !dbias1 && !saved.x.requires_grad()) return;
  const Tensor dpre = ctx.empty(saved.pre.shape(), saved.pre.dtype(), "mlp hidden gradient");
  {
    const Tensor scratch = column_sum_scratch(ctx, dbias1, rows);
    const Tensor transposed = transposed_weight_scratch(ctx, saved.weight2);
    linear_backward_data(ctx,
                         {dy, saved.weight2.view(), saved.pre.view(), GradTarget{dpre.mutable_view(), false}, dbias1,
                          scratch.mutable_view(), transposed.mutable_view(), saved.activation, precision, saved.fused});
  }
  if (dweight1) {
    linear_backward_weight(ctx, {dpre.view(), saved.x.view(), dweight1, {}, {}, precision, saved.fused});
  }
  if (const GradTarget dx = grads.into(saved.x)) {
    const Tensor transposed = transposed_weight_scratch(ctx, saved.weight1);
    linear_backward_data(ctx, {dpre.view(),
                               saved.weight1.view(),
                               {},
                               dx,
                               {},
                               {},
                               transposed.mutable_view(),
                               Activation::None,
                               precision,
                               saved.fused});
  }
}

}  // namespace

Tensor mlp(const Context& ctx, const Tensor& x, const MlpWeights& weights, Activation activation) {
  return mlp(ctx, x, weights, activation, default_epilogues(ctx.precision));
}

Tensor mlp(const Context& ctx, const Tensor& x, const MlpWeights& weights, Activation activation,
           const FusedEpilogues& fused) {
  require(activation == Activation::GeluTanh || activation == Activation::GeluErf,
          "mlp: the activation is {}, expected gelu_tanh or gelu_erf", name_of(activation));
  require_linear(ctx, "mlp", x, weights.weight1, weights.bias1, "weight1", "bias1");
  const DType compute = ctx.compute_dtype();
  const Shape hidden_shape = x.shape().with_columns(weights.weight1.shape()[0]);
  const bool keep = ctx.tape != nullptr;

  const Tensor hidden = ctx.empty(hidden_shape, compute, "mlp hidden");
  require_linear(ctx, "mlp", hidden, weights.weight2, weights.bias2, "weight2", "bias2");
  const Tensor pre = keep ? ctx.empty(hidden_shape, compute, "mlp pre-activation") : Tensor();
  linear_forward(ctx, {x.view(), weights.weight1.view(), weights.bias1.view(), hidden.mutable_view(),
                       pre.mutable_view(), activation, ctx.precision, fused});
  Tensor y = ctx.empty(x.shape().with_columns(weights.weight2.shape()[0]), compute, "mlp output");
  linear_forward(ctx, {hidden.view(),
                       weights.weight2.view(),
                       weights.bias2.view(),
                       y.mutable_view(),
                       {},
                       Activation::None,
                       ctx.precision,
                       fused});
  if (!keep) return y;

  const Saved saved{x, pre, hidden, weights.weight1, weights.weight2, weights.bias1, weights.bias2, activation, fused};
  ctx.tape->record("mlp", {x, weights.weight1, weights.bias1, weights.weight2, weights.bias2}, y,
                   [saved](const Context& c, Grads& grads, const GradRef& out) { backward(c, saved, grads, out); });
  return y;
}

}  // namespace graft
