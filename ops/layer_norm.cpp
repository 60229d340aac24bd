#include "ops/layer_norm.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {
namespace {

void check_arguments(const Context& ctx, const char* op, const Tensor& x, const Tensor& gain, const Tensor& bias) {
  require(x.shape().rank() >= 1, "{}: x is {}, expected [..., D]", op, x.shape().str());
  const std::int64_t width = x.shape().columns();
  require(width >= 1 && width <= kLayerNormMaxWidth, "{}: width is {}, expected 1 to {}", op, width,
          kLayerNormMaxWidth);
  require(gain.shape() == Shape{width}, "{}: gain is {}, expected [{}]", op, gain.shape().str(), width);
  require(bias.shape() == Shape{width}, "{}: bias is {}, expected [{}]", op, bias.shape().str(), width);
  const DType stream = ctx.stream_dtype();
  require(gain.dtype() == stream && bias.dtype() == stream, "{}: gain is {} and bias is {}, expected {} in {}", op,
          name_of(gain.dtype()), name_of(bias.dtype()), name_of(stream), name_of(ctx.precision));
}

void check_dtype(const Context& ctx, const char* op, const char* what, const Tensor& x) {
  require(x.dtype() == ctx.stream_dtype() || x.dtype() == ctx.compute_dtype(), "{}: {} is {}, expected {} or {} in {}",
          op, what, name_of(x.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.compute_dtype()),
          name_of(ctx.precision));
}

/// Scratch for the sums over rows, or an empty tensor where nobody wants them.
Tensor partial_sums(const Context& ctx, const Shape& shape, const GradTarget& dgain, const GradTarget& dbias) {
  if (!dgain && !dbias) return {};
  return ctx.empty({layer_norm_row_blocks(shape.rows()), 2, shape.columns()}, ctx.stream_dtype(),
                   "layer_norm partial sums");
}

View view_or_null(const Tensor& tensor) { return tensor ? tensor.mutable_view() : View{}; }

}  // namespace

Tensor layer_norm(const Context& ctx, const Tensor& x, const Tensor& gain, const Tensor& bias, double eps) {
  check_arguments(ctx, "layer_norm", x, gain, bias);
  check_dtype(ctx, "layer_norm", "x", x);
  Tensor y = ctx.empty(x.shape(), ctx.compute_dtype(), "layer_norm");
  Tensor mean, rstd;
  if (ctx.tape != nullptr) {
    mean = ctx.empty({x.shape().rows()}, ctx.stream_dtype(), "layer_norm mean");
    rstd = ctx.empty({x.shape().rows()}, ctx.stream_dtype(), "layer_norm rstd");
  }
  layer_norm_forward(
      ctx, {x.view(), {}, gain.view(), bias.view(), {}, y.mutable_view(), view_or_null(mean), view_or_null(rstd), eps});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("layer_norm", {x, gain, bias}, y,
                   [x, gain, mean, rstd, bias_ref = GradRef(bias)](const Context& c, Grads& grads, const GradRef& dy) {
                     const GradTarget dx = grads.into(x);
                     const GradTarget dgain = grads.into(gain);
                     const GradTarget dbias = grads.into(bias_ref);
                     const Tensor partial = partial_sums(c, x.shape(), dgain, dbias);
                     layer_norm_backward(c, {{},
                                             grads.of(dy),
                                             x.view(),
                                             gain.view(),
                                             mean.view(),
                                             rstd.view(),
                                             view_or_null(partial),
                                             dx,
                                             {},
                                             dgain,
                                             dbias});
                   });
  return y;
}

AddLayerNorm add_layer_norm(const Context& ctx, const Tensor& residual, const Tensor& branch, const Tensor& gain,
                            const Tensor& bias, bool keep_residual, double eps) {
  check_arguments(ctx, "add_layer_norm", residual, gain, bias);
  require(residual.dtype() == ctx.stream_dtype(), "add_layer_norm: residual is {}, expected {} in {}",
          name_of(residual.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
  require(branch.shape() == residual.shape(), "add_layer_norm: branch is {}, expected {}, the shape of residual",
          branch.shape().str(), residual.shape().str());
  check_dtype(ctx, "add_layer_norm", "branch", branch);

  Tensor sum, mean, rstd;
  // backward reads the sum, so a tape wants it written even if the caller does not
  if (keep_residual || ctx.tape != nullptr) sum = ctx.empty(residual.shape(), residual.dtype(), "residual");
  Tensor normed = ctx.empty(residual.shape(), ctx.compute_dtype(), "add_layer_norm");
  if (ctx.tape != nullptr) {
    mean = ctx.empty({residual.shape().rows()}, ctx.stream_dtype(), "layer_norm mean");
    rstd = ctx.empty({residual.shape().rows()}, ctx.stream_dtype(), "layer_norm rstd");
  }
  layer_norm_forward(ctx, {residual.view(), branch.view(), gain.view(), bias.view(), view_or_null(sum),
                           normed.mutable_view(), view_or_null(mean), view_or_null(rstd), eps});
  if (ctx.tape == nullptr) return {sum, normed};

  const auto backward = [sum, gain, mean, rstd, bias_ref = GradRef(bias), residual_ref = GradRef(residual),
                         branch_ref = GradRef(branch), sum_ref = GradRef(sum),
                         normed_ref = GradRef(normed)](const Context& c, Grads& grads) {
    const bool has_normed = grads.has(normed_ref);
    const bool same_dtype = residual_ref.dtype == branch_ref.dtype;
    if (same_dtype && !has_normed) {
      const Tensor d = grads.tensor(sum_ref);
      grads.pass(residual_ref, d);
      grads.pass(branch_ref, d);
      return;
    }
    Tensor shared = grads.tensor(sum_ref);
    GradTarget dresidual, dbranch;
    if (same_dtype) {
      // nobody else holds the incoming gradient: the kernel works in place, row by row
      const bool in_place = shared && shared.use_count() == 2;
      if (!in_place) shared = c.empty(sum.shape(), sum.dtype(), "residual gradient");
      dresidual = {shared.mutable_view(), false};
    } else {
      dresidual = grads.into(residual_ref);
      dbranch = grads.into(branch_ref);
    }
    GradTarget dgain, dbias;
    if (has_normed) {
      dgain = grads.into(gain);
      dbias = grads.into(bias_ref);
    }
    const Tensor partial = partial_sums(c, sum.shape(), dgain, dbias);
    layer_norm_backward(c, {grads.of(sum_ref), grads.of(normed_ref), sum.view(), gain.view(), mean.view(), rstd.view(),
                            view_or_null(partial), dresidual, dbranch, dgain, dbias});
    if (same_dtype) {
      grads.pass(residual_ref, shared);
      grads.pass(branch_ref, shared);
    }
  };
  if (keep_residual) {
    ctx.tape->record("add_layer_norm", {residual, branch, gain, bias}, {&sum, &normed}, backward);
    return {sum, normed};
  }
  ctx.tape->record("add_layer_norm", {residual, branch, gain, bias}, {&normed}, backward);
  return {Tensor{}, normed};
}

}  // namespace graft
