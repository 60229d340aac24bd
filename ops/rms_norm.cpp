#include "ops/rms_norm.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {
namespace {

void check_arguments(const Context& ctx, const char* op, const Tensor& x, const Tensor& weight) {
  require(x.shape().rank() >= 1, "{}: x is {}, expected [..., D]", op, x.shape().str());
  const std::int64_t width = x.shape().columns();
  require(width >= 1 && width <= kRmsNormMaxWidth, "{}: width is {}, expected 1 to {}", op, width, kRmsNormMaxWidth);
  require(weight.shape() == Shape{width}, "{}: weight is {}, expected [{}]", op, weight.shape().str(), width);
  require(weight.dtype() == ctx.stream_dtype(), "{}: weight is {}, expected {} in {}", op, name_of(weight.dtype()),
          name_of(ctx.stream_dtype()), name_of(ctx.precision));
}

void check_dtype(const Context& ctx, const char* op, const char* what, const Tensor& x) {
  require(x.dtype() == ctx.stream_dtype() || x.dtype() == ctx.compute_dtype(), "{}: {} is {}, expected {} or {} in {}",
          op, what, name_of(x.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.compute_dtype()),
          name_of(ctx.precision));
}

/// Scratch for the sums over rows, or an empty tensor where nobody wants them.
Tensor partial_sums(const Context& ctx, const Shape& shape, const GradTarget& dweight) {
  if (!dweight) return {};
  return ctx.empty({rms_norm_row_blocks(shape.rows()), shape.columns()}, ctx.stream_dtype(), "rms_norm partial sums");
}

Tensor statistics(const Context& ctx, const Shape& shape) {
  if (ctx.tape == nullptr) return {};
  return ctx.empty({shape.rows()}, ctx.stream_dtype(), "rms_norm rstd");
}

}  // namespace

Tensor rms_norm(const Context& ctx, const Tensor& x, const Tensor& weight, double eps) {
  check_arguments(ctx, "rms_norm", x, weight);
  check_dtype(ctx, "rms_norm", "x", x);
  Tensor y = ctx.empty(x.shape(), ctx.compute_dtype(), "rms_norm");
  const Tensor rstd = statistics(ctx, x.shape());
  rms_norm_forward(ctx, {x.view(), {}, weight.view(), {}, y.mutable_view(), rstd.mutable_view(), eps});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("rms_norm", {x, weight}, y, [x, weight, rstd](const Context& c, Grads& grads, const GradRef& dy) {
    const GradTarget dx = grads.into(x);
    const GradTarget dweight = grads.into(weight);
    const Tensor partial = partial_sums(c, x.shape(), dweight);
    rms_norm_backward(
        c, {{}, grads.of(dy), x.view(), weight.view(), rstd.view(), partial.mutable_view(), dx, {}, dweight});
  });
  return y;
}

AddRmsNorm add_rms_norm(const Context& ctx, const Tensor& residual, const Tensor& branch, const Tensor& weight,
                        bool keep_residual, double eps) {
  check_arguments(ctx, "add_rms_norm", residual, weight);
  require(residual.dtype() == ctx.stream_dtype(), "add_rms_norm: residual is {}, expected {} in {}",
          name_of(residual.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
  require(branch.shape() == residual.shape(), "add_rms_norm: branch is {}, expected {}, the shape of residual",
          branch.shape().str(), residual.shape().str());
  check_dtype(ctx, "add_rms_norm", "branch", branch);

  Tensor sum;
  // backward reads the sum, so a tape wants it written even if the caller does not
  if (keep_residual || ctx.tape != nullptr) sum = ctx.empty(residual.shape(), residual.dtype(), "residual");
  Tensor normed = ctx.empty(residual.shape(), ctx.compute_dtype(), "add_rms_norm");
  const Tensor rstd = statistics(ctx, residual.shape());
  rms_norm_forward(ctx, {residual.view(), branch.view(), weight.view(), sum.mutable_view(), normed.mutable_view(),
                         rstd.mutable_view(), eps});
  if (ctx.tape == nullptr) return {sum, normed};

  const auto backward = [sum, weight, rstd, residual_ref = GradRef(residual), branch_ref = GradRef(branch),
                         sum_ref = GradRef(sum), normed_ref = GradRef(normed)](const Context& c, Grads& grads) {
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
    const GradTarget dweight = has_normed ? grads.into(weight) : GradTarget{};
    const Tensor partial = partial_sums(c, sum.shape(), dweight);
    rms_norm_backward(c, {grads.of(sum_ref), grads.of(normed_ref), sum.view(), weight.view(), rstd.view(),
                          partial.mutable_view(), dresidual, dbranch, dweight});
    if (same_dtype) {
      grads.pass(residual_ref, shared);
      grads.pass(branch_ref, shared);
    }
  };
  if (keep_residual) {
    ctx.tape->record("add_rms_norm", {residual, branch, weight}, {&sum, &normed}, backward);
    return {sum, normed};
  }
  ctx.tape->record("add_rms_norm", {residual, branch, weight}, {&normed}, backward);
  return {Tensor{}, normed};
}

}  // namespace graft
