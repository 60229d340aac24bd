#include "ops/selective_scan.h"

#include <algorithm>

#include "engine/require.h"
#include "engine/tape.h"
#include "ops/checks.h"

namespace graft {
namespace {

constexpr const char* kOp = "selective_scan";

void check_inputs(const Context& ctx, const SelectiveScanInputs& in) {
  const Shape& shape = in.u.shape();
  require(in.u && shape.rank() == 3 && shape.elements() > 0, "{}: u is {}, expected [B, T, D]", kOp,
          in.u ? shape.str() : "empty");
  const std::int64_t width = shape[2];
  const DType compute = ctx.compute_dtype();
  const DType stream = ctx.stream_dtype();
  check_tensor(ctx, kOp, "u", in.u, shape, compute);
  check_tensor(ctx, kOp, "delta", in.delta, shape, compute);
  require(in.a_log && in.a_log.shape().rank() == 2 && in.a_log.shape()[0] == width, "{}: a_log is {}, expected [{}, N]",
          kOp, in.a_log ? in.a_log.shape().str() : "empty", width);
  const std::int64_t state = in.a_log.shape()[1];
  require(state >= 1 && state <= kSelectiveScanMaxState, "{}: a_log has {} states a channel, expected 1 to {}", kOp,
          state, kSelectiveScanMaxState);
  check_tensor(ctx, kOp, "a_log", in.a_log, in.a_log.shape(), stream);
  check_columns(ctx, kOp, "bc", in.bc, shape[0], shape[1], in.b_offset, state, "B");
  check_columns(ctx, kOp, "bc", in.bc, shape[0], shape[1], in.c_offset, state, "C");
  require(std::max(in.b_offset, in.c_offset) - std::min(in.b_offset, in.c_offset) >= state,
          "{}: B starts at column {} and C at column {} of bc, expected {} columns of their own each", kOp, in.b_offset,
          in.c_offset, state);
  if (in.skip) check_tensor(ctx, kOp, "skip", in.skip, {width}, stream);
  if (in.delta_bias) check_tensor(ctx, kOp, "delta_bias", in.delta_bias, {width}, stream);
  if (in.z) check_columns(ctx, kOp, "z", in.z, shape[0], shape[1], in.z_offset, width, "the gate");
  if (in.final_state) check_tensor(ctx, kOp, "final_state", in.final_state, {shape[0], width, state}, stream);
}

SelectiveScanSource source_of(const SelectiveScanInputs& in) {
  return {in.u.view(),
          in.delta.view(),
          in.a_log.view(),
          in.bc.view(),
          view_or_null(in.skip),
          view_or_null(in.z),
          view_or_null(in.delta_bias),
          in.b_offset,
          in.c_offset,
          in.z_offset,
          in.softplus};
}

void run_backward(const Context& ctx, Grads& grads, const GradRef& dy, const SelectiveScanInputs& in,
                  const Tensor& checkpoints) {
  const std::int64_t batch = in.u.shape()[0], tokens = in.u.shape()[1], width = in.u.shape()[2];
  const std::int64_t state = in.a_log.shape()[1];
  const std::int64_t block = selective_scan_channel_block(batch, width, state);
  const DType stream = ctx.stream_dtype();
  const Tensor partial_bc =
      ctx.empty({batch, tokens, (width + block - 1) / block, 2, state}, stream, "selective_scan partial dB, dC");
  const Tensor partial_a = ctx.empty({batch, width, state}, stream, "selective_scan partial dA");
  const Tensor partial_channels = ctx.empty({batch, 2, width}, stream, "selective_scan partial dskip, dbias");
  const GradTarget du = grads.into(in.u);
  const GradTarget ddelta = grads.into(in.delta);
  const GradTarget da_log = grads.into(in.a_log);
  const GradTarget db = grads.into_columns(in.bc, in.b_offset, state);
  const GradTarget dc = grads.into_columns(in.bc, in.c_offset, state);
  const GradTarget dz = in.z ? grads.into_columns(in.z, in.z_offset, width) : GradTarget{};
  const GradTarget dskip = target_or_null(grads, in.skip);
  const GradTarget dbias = target_or_null(grads, in.delta_bias);
  selective_scan_backward(
      ctx, {source_of(in), grads.of(dy), view_or_null(checkpoints), partial_bc.mutable_view(), partial_a.mutable_view(),
            partial_channels.mutable_view(), du, ddelta, da_log, db, dc, dz, dskip, dbias});
}

}  // namespace

Tensor selective_scan(const Context& ctx, const SelectiveScanInputs& inputs) {
  check_inputs(ctx, inputs);
  const Shape& shape = inputs.u.shape();
  Tensor y = ctx.empty(shape, ctx.compute_dtype(), kOp);
  Tensor checkpoints;
  if (ctx.tape != nullptr && selective_scan_checkpoints(shape[1]) > 0) {
    checkpoints = ctx.empty({shape[0], selective_scan_checkpoints(shape[1]), shape[2], inputs.a_log.shape()[1]},
                            ctx.stream_dtype(), "selective_scan states");
  }
  selective_scan_forward(ctx, {source_of(inputs), y.mutable_view(), mutable_view_or_null(checkpoints),
                               mutable_view_or_null(inputs.final_state)});
  if (ctx.tape == nullptr) return y;
  SelectiveScanInputs saved = inputs;
  saved.final_state = Tensor();
  const auto ref = [](const Tensor& tensor) { return tensor ? GradRef(tensor) : GradRef{}; };
  ctx.tape->record(
      kOp, {inputs.u, inputs.delta, inputs.a_log, inputs.bc, ref(inputs.skip), ref(inputs.z), ref(inputs.delta_bias)},
      y, [saved, checkpoints](const Context& c, Grads& grads, const GradRef& dy) {
        run_backward(c, grads, dy, saved, checkpoints);
      });
  return y;
}

}  // namespace graft
