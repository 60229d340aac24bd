#include "ops/decode_scan.h"

#include <limits>

#include "engine/require.h"
#include "ops/decode_checks.h"
#include "ops/ssd_checks.h"

namespace graft {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Tensor run(const Context& ctx, const char* op, ScanExtension& args, const Tensor& state, std::int64_t channels) {
  const Shape& x = args.x.shape;
  Tensor y = ctx.empty({x[0], x[1], channels}, ctx.compute_dtype(), op);
  args.state = state.mutable_view();
  args.y = y.mutable_view();
  scan_extension(ctx, args);
  return y;
}

}  // namespace

Tensor extend_selective_scan(const Context& ctx, const SelectiveScanInputs& in, const Tensor& state) {
  constexpr const char* kOp = "extend_selective_scan";
  check_inference(ctx, kOp);
  const Shape& shape = in.u.shape();
  require(in.u && shape.rank() == 3 && shape.elements() > 0, "{}: u is {}, expected [B, n, D]", kOp,
          in.u ? shape.str() : "empty");
  require(!in.final_state, "{}: final_state is given, expected none: the state is brought up to date in place", kOp);
  const std::int64_t width = shape[2];
  const DType stream = ctx.stream_dtype();
  check_tensor(ctx, kOp, "u", in.u, shape, ctx.compute_dtype());
  check_tensor(ctx, kOp, "delta", in.delta, shape, ctx.compute_dtype());
  const Shape& a_log = in.a_log.shape();
  require(in.a_log && a_log.rank() == 2 && a_log[0] == width && a_log[1] >= 1 && a_log[1] <= kSelectiveScanMaxState,
          "{}: a_log is {}, expected [{}, 1 to {}]", kOp, in.a_log ? a_log.str() : "empty", width,
          kSelectiveScanMaxState);
  check_tensor(ctx, kOp, "a_log", in.a_log, a_log, stream);
  check_columns(ctx, kOp, "bc", in.bc, shape[0], shape[1], in.b_offset, a_log[1], "B");
  check_columns(ctx, kOp, "bc", in.bc, shape[0], shape[1], in.c_offset, a_log[1], "C");
  if (in.skip) check_tensor(ctx, kOp, "skip", in.skip, {width}, stream);
  if (in.delta_bias) check_tensor(ctx, kOp, "delta_bias", in.delta_bias, {width}, stream);
  if (in.z) check_columns(ctx, kOp, "z", in.z, shape[0], shape[1], in.z_offset, width, "the gate");
  check_tensor(ctx, kOp, "state", state, {shape[0], width, a_log[1]}, stream);

  ScanExtension args{.x = in.u.view(),
                     .dt = in.delta.view(),
                     .bc = in.bc.view(),
                     .a_log = in.a_log.view(),
                     .bias = view_or_null(in.delta_bias),
                     .skip = view_or_null(in.skip),
                     .z = view_or_null(in.z),
                     .b_offset = in.b_offset,
                     .c_offset = in.c_offset,
                     .z_offset = in.z_offset,
                     .head_dim = 1,
                     .group = width,
                     .skip_share = 1,
                     .softplus = in.softplus,
                     .dt_min = -kInfinity,
                     .dt_max = kInfinity};
  return run(ctx, kOp, args, state, width);
}

Tensor extend_ssd(const Context& ctx, const SsdInputs& in, const Tensor& state) {
  constexpr const char* kOp = "extend_ssd";
  check_inference(ctx, kOp);
  require(!in.initial_state && !in.want_final_state,
          "{}: an initial or final state is asked for, expected neither: the state is brought up to date in place",
          kOp);
  check_ssd_inputs(ctx, kOp, in);
  const Shape& shape = in.xbc.shape();
  const std::int64_t channels = in.heads * in.head_dim;
  const bool skip_a_head = in.skip && in.skip.shape().rank() == 1;
  check_tensor(ctx, kOp, "state", state, {shape[0], in.heads, in.head_dim, in.state}, ctx.stream_dtype());

  ScanExtension args{.x = in.xbc.view(),
                     .dt = in.dt.view(),
                     .bc = in.xbc.view(),
                     .a_log = in.a_log.view(),
                     .bias = view_or_null(in.dt_bias),
                     .skip = view_or_null(in.skip),
                     .z = view_or_null(in.z),
                     .x_offset = in.x_offset,
                     .dt_offset = in.dt_offset,
                     .b_offset = in.b_offset,
                     .c_offset = in.c_offset,
                     .z_offset = in.z_offset,
                     .head_dim = in.head_dim,
                     .group = channels / in.groups,
                     .skip_share = skip_a_head ? in.head_dim : 1,
                     .softplus = true,
                     .dt_min = in.dt_min,
                     .dt_max = in.dt_max};
  return run(ctx, kOp, args, state, channels);
}

}  // namespace graft
