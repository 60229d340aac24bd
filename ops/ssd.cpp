#include "ops/ssd.h"

#include "engine/tape.h"
#include "ops/checks.h"
#include "ops/ssd_checks.h"

namespace graft {
namespace {

constexpr const char* kOp = "ssd";

SsdSource source_of(const SsdInputs& in) {
  SsdSource source;
  source.xbc = in.xbc.view();
  source.dt = in.dt.view();
  source.a_log = in.a_log.view();
  source.dt_bias = view_or_null(in.dt_bias);
  source.skip = view_or_null(in.skip);
  source.z = view_or_null(in.z);
  source.initial = view_or_null(in.initial_state);
  source.x_offset = in.x_offset;
  source.b_offset = in.b_offset;
  source.c_offset = in.c_offset;
  source.dt_offset = in.dt_offset;
  source.z_offset = in.z_offset;
  source.heads = in.heads;
  source.head_dim = in.head_dim;
  source.groups = in.groups;
  source.state = in.state;
  source.dt_min = in.dt_min;
  source.dt_max = in.dt_max;
  return source;
}

void run_backward(const Context& ctx, Grads& grads, const GradRef& y, const GradRef& final_state, const SsdInputs& in,
                  const Tensor& states) {
  const std::int64_t batch = in.xbc.shape()[0], tokens = in.xbc.shape()[1];
  const std::int64_t chunks = ssd_chunks(tokens);
  const std::int64_t inner = in.heads * in.head_dim;
  const std::int64_t shared = in.groups * in.state;
  const std::int64_t head_blocks = in.heads / ssd_head_block(in.heads, in.groups);
  const DType stream = ctx.stream_dtype();

  SsdBackward args;
  args.in = source_of(in);
  args.dy = grads.of(y);
  if (final_state.id != 0) args.dfinal = grads.of(final_state);
  args.states = view_or_null(states);
  args.dx = grads.into_columns(in.xbc, in.x_offset, inner);
  args.db = grads.into_columns(in.xbc, in.b_offset, shared);
  args.dc = grads.into_columns(in.xbc, in.c_offset, shared);
  args.ddt = grads.into_columns(in.dt, in.dt_offset, in.heads);
  args.da_log = grads.into(in.a_log);
  args.ddt_bias = target_or_null(grads, in.dt_bias);
  args.dskip = target_or_null(grads, in.skip);
  if (in.z) args.dz = grads.into_columns(in.z, in.z_offset, inner);
  args.dinitial = target_or_null(grads, in.initial_state);

  Tensor dstates;
  if (chunks > 1) {
    dstates = ctx.empty({batch, chunks, in.heads, in.head_dim, in.state}, stream, "ssd gradients of states");
  }
  const Tensor partial_bc = ctx.empty({batch, tokens, head_blocks, 2, in.state}, stream, "ssd partial dB, dC");
  const Tensor partial_heads = ctx.empty({batch, chunks, 2, in.heads}, stream, "ssd partial dA, ddt_bias");
  Tensor partial_skip;
  if (args.dskip) partial_skip = ctx.empty({batch, chunks, inner}, stream, "ssd partial dskip");
  args.dstates = mutable_view_or_null(dstates);
  args.partial_bc = partial_bc.mutable_view();
  args.partial_heads = partial_heads.mutable_view();
  args.partial_skip = mutable_view_or_null(partial_skip);
  ssd_backward(ctx, args);
}

}  // namespace

Ssd ssd(const Context& ctx, const SsdInputs& inputs) {
  check_ssd_inputs(ctx, kOp, inputs);
  const std::int64_t batch = inputs.xbc.shape()[0], tokens = inputs.xbc.shape()[1];
  const DType stream = ctx.stream_dtype();
  Ssd out;
  out.y = ctx.empty({batch, tokens, inputs.heads * inputs.head_dim}, ctx.compute_dtype(), kOp);
  if (inputs.want_final_state) {
    out.final_state = ctx.empty({batch, inputs.heads, inputs.head_dim, inputs.state}, stream, "ssd final state");
  }
  // Without a tape too: chunks are computed side by side, and their states meet here.
  Tensor states;
  if (ssd_chunks(tokens) > 1) {
    states = ctx.empty({batch, ssd_chunks(tokens), inputs.heads, inputs.head_dim, inputs.state}, stream, "ssd states");
  }
  ssd_forward(ctx, {source_of(inputs), out.y.mutable_view(), mutable_view_or_null(states),
                    mutable_view_or_null(out.final_state)});
  if (ctx.tape == nullptr) return out;

  const auto ref = [](const Tensor& tensor) { return tensor ? GradRef(tensor) : GradRef{}; };
  ctx.tape->record(kOp,
                   {inputs.xbc, inputs.dt, inputs.a_log, ref(inputs.dt_bias), ref(inputs.skip), ref(inputs.z),
                    ref(inputs.initial_state)},
                   {&out.y, &out.final_state},
                   [saved = inputs, states, y = GradRef(out.y), last = ref(out.final_state)](
                       const Context& c, Grads& grads) { run_backward(c, grads, y, last, saved, states); });
  return out;
}

}  // namespace graft
