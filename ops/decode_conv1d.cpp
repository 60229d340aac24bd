#include "ops/decode_conv1d.h"

#include "engine/require.h"
#include "ops/decode_checks.h"

namespace graft {
namespace {

constexpr const char* kOp = "extend_causal_conv1d";

void check_parameter_dtype(const Context& ctx, const char* what, const Tensor& parameter) {
  require(parameter.dtype() == ctx.compute_dtype() || parameter.dtype() == ctx.stream_dtype(),
          "{}: {} is {}, expected {} or {} in {}", kOp, what, name_of(parameter.dtype()), name_of(ctx.compute_dtype()),
          name_of(ctx.stream_dtype()), name_of(ctx.precision));
}

}  // namespace

Tensor extend_causal_conv1d(const Context& ctx, const Tensor& x, std::int64_t offset, std::int64_t channels,
                            const Tensor& weight, const Tensor& bias, bool silu, const Tensor& state) {
  check_inference(ctx, kOp);
  const Shape& shape = x.shape();
  require(x && shape.rank() == 3 && shape.elements() > 0 && channels >= 1,
          "{}: x is {} and has {} channels, expected [B, n, row] without empty extent", kOp, x ? shape.str() : "empty",
          channels);
  check_columns(ctx, kOp, "x", x, shape[0], shape[1], offset, channels, "the convolution");
  const Shape& taps = weight.shape();
  require(weight && taps.rank() == 2 && taps[0] == channels && taps[1] >= kCausalConvMinWidth &&
              taps[1] <= kCausalConvMaxWidth,
          "{}: weight is {}, expected [{}, width] with a width of {} to {}", kOp, weight ? taps.str() : "empty",
          channels, kCausalConvMinWidth, kCausalConvMaxWidth);
  check_parameter_dtype(ctx, "weight", weight);
  if (bias) {
    require(bias.shape() == Shape{channels}, "{}: bias is {}, expected [{}]", kOp, bias.shape().str(), channels);
    check_parameter_dtype(ctx, "bias", bias);
  }
  check_tensor(ctx, kOp, "state", state, {shape[0], taps[1] - 1, channels}, ctx.compute_dtype());
  Tensor y = ctx.empty(shape.with_columns(channels), ctx.compute_dtype(), kOp);
  causal_conv1d_extension(
      ctx, {x.view(), weight.view(), view_or_null(bias), state.mutable_view(), y.mutable_view(), offset, silu});
  return y;
}

}  // namespace graft
