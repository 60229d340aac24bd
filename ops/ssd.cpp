#include "ops/ssd.h"

#include <initializer_list>

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {
namespace {

constexpr const char* kOp = "ssd";

void check_tensor(const char* name, const Tensor& tensor, const Shape& shape, DType dtype, const Context& ctx) {
  require(static_cast<bool>(tensor), "{}: {} is empty, expected {}", kOp, name, shape.str());
  require(tensor.shape() == shape, "{}: {} is {}, expected {}", kOp, name, tensor.shape().str(), shape.str());
  require(tensor.dtype() == dtype, "{}: {} is {}, expected {} in {}", kOp, name, name_of(tensor.dtype()),
          name_of(dtype), name_of(ctx.precision));
}

/// [B, T, row] in the compute dtype.
void check_packed(const char* name, const Tensor& tensor, const Shape& xbc, const Context& ctx) {
  require(tensor && tensor.shape().rank() == 3 && tensor.shape()[0] == xbc[0] && tensor.shape()[1] == xbc[1],
          "{}: {} is {}, expected [{}, {}, row]", kOp, name, tensor ? tensor.shape().str() : "empty", xbc[0], xbc[1]);
  require(tensor.dtype() == ctx.compute_dtype(), "{}: {} is {}, expected {} in {}", kOp, name, name_of(tensor.dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.precision));
}

/// Columns that the op reads of a packed tensor.
struct Columns {
  const char* what;
  const char* tensor_name;
  const Tensor& tensor;
  std::int64_t first, count;
};

/// All columns lie within their tensors, and no two parts share one: their gradients are written side by side.
void check_columns(std::initializer_list<Columns> parts) {
  for (const Columns& part : parts) {
    if (!part.tensor) continue;
    require(part.first >= 0 && part.first + part.count <= part.tensor.shape()[2],
            "{}: {} is columns {} to {} of {}, expected columns within its {}", kOp, part.what, part.first,
            part.first + part.count - 1, part.tensor_name, part.tensor.shape()[2]);
  }
  for (const Columns* one = parts.begin(); one != parts.end(); ++one) {
    for (const Columns* other = one + 1; other != parts.end(); ++other) {
      if (!one->tensor || !other->tensor || one->tensor.id() != other->tensor.id()) continue;
      require(one->first + one->count <= other->first || other->first + other->count <= one->first,
              "{}: {} is columns {} to {} of {} and {} columns {} to {}, expected columns of their own", kOp, one->what,
              one->first, one->first + one->count - 1, one->tensor_name, other->what, other->first,
              other->first + other->count - 1);
    }
  }
}

void check_inputs(const Context& ctx, const SsdInputs& in) {
  require(in.heads >= 1, "{}: heads = {}, expected at least 1", kOp, in.heads);
  require(in.head_dim >= 1, "{}: head_dim = {}, expected at least 1", kOp, in.head_dim);
  require(in.groups >= 1 && in.heads % in.groups == 0, "{}: groups = {}, expected a divisor of the {} heads", kOp,
          in.groups, in.heads);
  require(in.state >= 1 && in.state <= kSsdMaxState, "{}: state = {}, expected 1 to {}", kOp, in.state, kSsdMaxState);
  require(in.dt_min >= 0 && in.dt_min <= in.dt_max, "{}: dt_min = {} and dt_max = {}, expected 0 <= dt_min <= dt_max",
          kOp, in.dt_min, in.dt_max);
  const Shape& shape = in.xbc.shape();
  require(in.xbc && shape.rank() == 3 && shape.elements() > 0, "{}: xbc is {}, expected [B, T, row]", kOp,
          in.xbc ? shape.str() : "empty");
  const DType stream = ctx.stream_dtype();
  const std::int64_t inner = in.heads * in.head_dim;
  const std::int64_t shared = in.groups * in.state;
  check_packed("xbc", in.xbc, shape, ctx);
  check_packed("dt", in.dt, shape, ctx);
  if (in.z) check_packed("z", in.z, shape, ctx);
  check_columns({{"x", "xbc", in.xbc, in.x_offset, inner},
                 {"B", "xbc", in.xbc, in.b_offset, shared},
                 {"C", "xbc", in.xbc, in.c_offset, shared},
                 {"the step size", "dt", in.dt, in.dt_offset, in.heads},
                 {"the gate", "z", in.z, in.z_offset, inner}});
  check_tensor("a_log", in.a_log, {in.heads}, stream, ctx);
  if (in.dt_bias) check_tensor("dt_bias", in.dt_bias, {in.heads}, stream, ctx);
  if (in.skip) {
    const Shape per_head{in.heads}, per_channel{in.heads, in.head_dim};
    require(in.skip.shape() == per_head || in.skip.shape() == per_channel, "{}: skip is {}, expected {} or {}", kOp,
            in.skip.shape().str(), per_head.str(), per_channel.str());
    check_tensor("skip", in.skip, in.skip.shape(), stream, ctx);
  }
  if (in.initial_state) {
    check_tensor("initial_state", in.initial_state, {shape[0], in.heads, in.head_dim, in.state}, stream, ctx);
  }
}

ConstView view_or_null(const Tensor& tensor) { return tensor ? tensor.view() : ConstView{}; }
View mutable_view_or_null(const Tensor& tensor) { return tensor ? tensor.mutable_view() : View{}; }
GradTarget target_or_null(Grads& grads, const Tensor& tensor) { return tensor ? grads.into(tensor) : GradTarget{}; }

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
  args.precision = ctx.precision;
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
  check_inputs(ctx, inputs);
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
