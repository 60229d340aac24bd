#include "ops/gated_rms_norm.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {
namespace {

void check_arguments(const Context& ctx, const Tensor& x, const Tensor& z, std::int64_t z_offset, const Tensor& weight,
                     std::int64_t group_size) {
  require(x.shape().rank() >= 1 && x.elements() > 0, "gated_rms_norm: x is {}, expected [..., D] without empty extent",
          x.shape().str());
  const std::int64_t width = x.shape().columns();
  require(z.shape().rank() == x.shape().rank() && z.shape().with_columns(width) == x.shape(),
          "gated_rms_norm: z is {}, expected the extents of x, {}, but the last", z.shape().str(), x.shape().str());
  require(z_offset >= 0 && z_offset + width <= z.shape().columns(),
          "gated_rms_norm: columns {} to {} of z, which is {}, expected a range within its {} columns", z_offset,
          z_offset + width, z.shape().str(), z.shape().columns());
  require(x.dtype() == ctx.compute_dtype() && z.dtype() == ctx.compute_dtype(),
          "gated_rms_norm: x is {} and z is {}, expected {} in {}", name_of(x.dtype()), name_of(z.dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.precision));
  require(weight.shape() == Shape{width}, "gated_rms_norm: weight is {}, expected [{}]", weight.shape().str(), width);
  require(weight.dtype() == ctx.stream_dtype(), "gated_rms_norm: weight is {}, expected {} in {}",
          name_of(weight.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
  require(group_size >= 1 && width % group_size == 0,
          "gated_rms_norm: group_size is {}, expected a divisor of the width {}, or 0 for one group", group_size,
          width);
  require(group_size <= kGatedRmsNormMaxGroup, "gated_rms_norm: groups of {} channels, expected at most {}", group_size,
          kGatedRmsNormMaxGroup);
}

}  // namespace

Tensor gated_rms_norm(const Context& ctx, const Tensor& x, const Tensor& z, std::int64_t z_offset, const Tensor& weight,
                      bool norm_before_gate, std::int64_t group_size, double eps) {
  const std::int64_t width = x.shape().columns();
  const std::int64_t group = group_size == 0 ? width : group_size;
  check_arguments(ctx, x, z, z_offset, weight, group);
  Tensor y = ctx.empty(x.shape(), ctx.compute_dtype(), "gated_rms_norm");
  Tensor rstd;
  if (ctx.tape != nullptr) {
    rstd = ctx.empty({x.shape().rows(), width / group}, ctx.stream_dtype(), "gated_rms_norm rstd");
  }
  gated_rms_norm_forward(ctx, {x.view(), z.view(), weight.view(), y.mutable_view(), rstd.mutable_view(), z_offset,
                               group, norm_before_gate, eps});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record(
      "gated_rms_norm", {x, z, weight}, y,
      [x, z, z_offset, weight, rstd, group, norm_before_gate](const Context& c, Grads& grads, const GradRef& dy) {
        const GradTarget dx = grads.into(x);
        const GradTarget dz = grads.into_columns(z, z_offset, x.shape().columns());
        const GradTarget dweight = grads.into(weight);
        Tensor partial;
        if (dweight) {
          partial = c.empty({gated_rms_norm_row_blocks(x.shape().rows()), x.shape().columns()}, c.stream_dtype(),
                            "gated_rms_norm partial sums");
        }
        gated_rms_norm_backward(c, {grads.of(dy), x.view(), z.view(), weight.view(), rstd.view(),
                                    partial.mutable_view(), dx, dz, dweight, z_offset, group, norm_before_gate});
      });
  return y;
}

}  // namespace graft
