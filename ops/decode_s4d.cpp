#include "ops/decode_s4d.h"

#include "engine/require.h"
#include "ops/decode_checks.h"

namespace graft {

Tensor extend_s4d(const Context& ctx, const Tensor& u, const S4dParameters& parameters, const S4dGate& gate,
                  const Tensor& state) {
  constexpr const char* kOp = "extend_s4d";
  check_inference(ctx, kOp);
  const Shape& shape = u.shape();
  require(u && shape.rank() == 3 && shape.elements() > 0, "{}: u is {}, expected [B, n, H]", kOp,
          u ? shape.str() : "empty");
  const std::int64_t channels = shape[2];
  const DType stream = ctx.stream_dtype();
  check_tensor(ctx, kOp, "u", u, shape, ctx.compute_dtype());
  const Shape& c = parameters.c.shape();
  require(parameters.c && c.rank() == 3 && c[0] == channels && c[2] == 2 && c[1] >= 1 && c[1] <= kS4dMaxModes,
          "{}: c is {}, expected [{}, 1 to {} modes, 2]", kOp, parameters.c ? c.str() : "empty", channels,
          kS4dMaxModes);
  check_tensor(ctx, kOp, "c", parameters.c, c, stream);
  check_tensor(ctx, kOp, "log_dt", parameters.log_dt, {channels}, stream);
  check_tensor(ctx, kOp, "log_a_real", parameters.log_a_real, {channels, c[1]}, stream);
  check_tensor(ctx, kOp, "a_imag", parameters.a_imag, {channels, c[1]}, stream);
  check_tensor(ctx, kOp, "skip", parameters.skip, {channels}, stream);
  S4dLayout layout{
      .batch = shape[0], .tokens = shape[1], .channels = channels, .modes = static_cast<int>(c[1]), .chunks = 1};
  if (gate.packed) {
    check_columns(ctx, kOp, "the packed tensor", gate.packed, shape[0], shape[1], gate.offset, channels, "the gate");
    layout.activation = gate.activation;
    layout.gate_row = gate.packed.shape()[2];
    layout.gate_offset = gate.offset;
  }
  check_tensor(ctx, kOp, "state", state, {shape[0], channels, c[1], 2}, stream);

  const Tensor table = ctx.empty({c[1], kS4dTableRows, channels}, stream, "extend_s4d modes");
  s4d_modes(ctx, {parameters.c.view(), parameters.log_dt.view(), parameters.log_a_real.view(), parameters.a_imag.view(),
                  table.mutable_view(), layout});
  Tensor y = ctx.empty(shape, u.dtype(), kOp);
  s4d_extension(ctx, {u.view(), table.view(), parameters.skip.view(), view_or_null(gate.packed), state.mutable_view(),
                      y.mutable_view(), layout});
  return y;
}

}  // namespace graft
