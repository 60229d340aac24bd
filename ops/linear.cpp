#include "ops/linear.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

void require_linear(const Context& ctx, const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    const char* weight_name, const char* bias_name) {
  const DType compute = ctx.compute_dtype();
  require(static_cast<bool>(x) && x.shape().rank() >= 1, "{}: x is {}, expected [..., in]", op, x.shape().str());
  require(x.dtype() == compute, "{}: x is {}, expected {} in {}", op, name_of(x.dtype()), name_of(compute),
          name_of(ctx.precision));
  require(static_cast<bool>(weight) && weight.shape().rank() == 2, "{}: {} is {}, expected [out, in]", op, weight_name,
          weight.shape().str());
  require(weight.dtype() == compute, "{}: {} is {}, expected {} in {}", op, weight_name, name_of(weight.dtype()),
          name_of(compute), name_of(ctx.precision));
  require(x.shape().columns() == weight.shape()[1], "{}: x is {} and {} is {}, expected x [..., {}]", op,
          x.shape().str(), weight_name, weight.shape().str(), weight.shape()[1]);
  require(x.elements() > 0 && weight.elements() > 0, "{}: x is {} and {} is {}, expected no empty extent", op,
          x.shape().str(), weight_name, weight.shape().str());
  if (!bias) return;
  require(bias.shape() == Shape{weight.shape()[0]}, "{}: {} is {}, expected [{}]", op, bias_name, bias.shape().str(),
          weight.shape()[0]);
  require(bias.dtype() == compute || (compute == DType::BF16 && bias.dtype() == DType::F32),
          "{}: {} is {}, expected {} in {}", op, bias_name, name_of(bias.dtype()), name_of(compute),
          name_of(ctx.precision));
}

Tensor column_sum_scratch(const Context& ctx, const GradTarget& target, std::int64_t rows) {
  if (!target) return {};
  return ctx.empty({column_sum_parts(rows), target.view.shape.elements()}, ctx.stream_dtype(), "partial column sums");
}

Tensor transposed_weight_scratch(const Context& ctx, const Tensor& weight) {
  constexpr std::int64_t kWorthwhile = 1 << 17;
  if (ctx.precision != Precision::Tf32 || weight.elements() < kWorthwhile) return {};
  return ctx.empty({weight.shape()[1], weight.shape()[0]}, weight.dtype(), "transposed weight");
}

Tensor linear(const Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return linear(ctx, x, weight, bias, default_epilogues(ctx.precision));
}

Tensor linear(const Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
              const FusedEpilogues& fused) {
  require_linear(ctx, "linear", x, weight, bias, "weight", "bias");
  Tensor y = ctx.empty(x.shape().with_columns(weight.shape()[0]), ctx.compute_dtype(), "linear output");
  linear_forward(ctx,
                 {x.view(), weight.view(), bias.view(), y.mutable_view(), {}, Activation::None, ctx.precision, fused});
  if (ctx.tape == nullptr) return y;
  const GradRef bias_ref = bias;
  ctx.tape->record(
      "linear", {x, weight, bias_ref}, y,
      [x, weight, bias_ref, fused](const Context& c, Grads& grads, const GradRef& output) {
        const ConstView dy = grads.of(output);
        const GradTarget dweight = grads.into(weight);
        const GradTarget dbias = grads.into(bias_ref);
        if (dweight || dbias) {
          const Tensor scratch = column_sum_scratch(c, dbias, x.shape().rows());
          linear_backward_weight(c, {dy, x.view(), dweight, dbias, scratch.mutable_view(), c.precision, fused});
        }
        if (const GradTarget dx = grads.into(x)) {
          const Tensor transposed = transposed_weight_scratch(c, weight);
          linear_backward_data(
              c, {dy, weight.view(), {}, dx, {}, {}, transposed.mutable_view(), Activation::None, c.precision, fused});
        }
      });
  return y;
}

}  // namespace graft
