#include "ops/causal_conv1d.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {
namespace {

void check_parameter_dtype(const Context& ctx, const char* what, const Tensor& parameter) {
  require(parameter.dtype() == ctx.compute_dtype() || parameter.dtype() == ctx.stream_dtype(),
          "causal_conv1d: {} is {}, expected {} or {} in {}", what, name_of(parameter.dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
}

void check_arguments(const Context& ctx, const Tensor& x, std::int64_t offset, std::int64_t channels,
                     const Tensor& weight, const Tensor& bias) {
  require(x.shape().rank() == 3 && x.elements() > 0,
          "causal_conv1d: x is {}, expected [B, T, row] without empty extent", x.shape().str());
  require(x.dtype() == ctx.compute_dtype(), "causal_conv1d: x is {}, expected {} in {}", name_of(x.dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.precision));
  require(offset >= 0 && channels >= 1 && offset + channels <= x.shape().columns(),
          "causal_conv1d: columns {} to {} of x, which is {}, expected a range within its {} columns", offset,
          offset + channels, x.shape().str(), x.shape().columns());
  require(weight.shape().rank() == 2 && weight.shape()[0] == channels && weight.shape()[1] >= kCausalConvMinWidth &&
              weight.shape()[1] <= kCausalConvMaxWidth,
          "causal_conv1d: weight is {}, expected [{}, width] with a width of {} to {}", weight.shape().str(), channels,
          kCausalConvMinWidth, kCausalConvMaxWidth);
  check_parameter_dtype(ctx, "weight", weight);
  if (!bias) return;
  require(bias.shape() == Shape{channels}, "causal_conv1d: bias is {}, expected [{}]", bias.shape().str(), channels);
  check_parameter_dtype(ctx, "bias", bias);
}

}  // namespace

Tensor causal_conv1d(const Context& ctx, const Tensor& x, std::int64_t offset, std::int64_t channels,
                     const Tensor& weight, const Tensor& bias, bool silu) {
  check_arguments(ctx, x, offset, channels, weight, bias);
  Tensor y = ctx.empty(x.shape().with_columns(channels), ctx.compute_dtype(), "causal_conv1d");
  causal_conv1d_forward(ctx, {x.view(), weight.view(), bias.view(), y.mutable_view(), offset, silu});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("causal_conv1d", {x, weight, bias}, y,
                   [x, offset, channels, weight, bias, silu](const Context& c, Grads& grads, const GradRef& output) {
                     const GradTarget dx = grads.into_columns(x, offset, channels);
                     const GradTarget dweight = grads.into(weight);
                     const GradTarget dbias = grads.into(bias);
                     Tensor partial;
                     if (dweight || dbias) {
                       const CausalConvSplit split = causal_conv1d_split(x.shape()[0], x.shape()[1], channels);
                       partial = c.empty({split.parts, weight.shape()[1] + 1, channels}, c.stream_dtype(),
                                         "causal_conv1d partial sums");
                     }
                     causal_conv1d_backward(c, {grads.of(output), x.view(), weight.view(), bias.view(),
                                                partial.mutable_view(), dx, dweight, dbias, offset, silu});
                   });
  return y;
}

}  // namespace graft
