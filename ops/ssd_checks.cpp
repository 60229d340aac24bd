#include "ops/ssd_checks.h"

#include <initializer_list>

#include "engine/require.h"
#include "ops/checks.h"

namespace graft {
namespace {

/// Columns that the op reads of a packed tensor.
struct Columns {
  const char* what;
  const char* tensor_name;
  const Tensor& tensor;
  std::int64_t first, count;
};

/// All columns lie within their tensors, and no two parts share one: their gradients are written side by side.
void check_parts(const Context& ctx, const char* op, const Shape& xbc, std::initializer_list<Columns> parts) {
  for (const Columns& part : parts) {
    check_columns(ctx, op, part.tensor_name, part.tensor, xbc[0], xbc[1], part.first, part.count, part.what);
  }
  for (const Columns* one = parts.begin(); one != parts.end(); ++one) {
    for (const Columns* other = one + 1; other != parts.end(); ++other) {
      if (one->tensor.id() != other->tensor.id()) continue;
      require(one->first + one->count <= other->first || other->first + other->count <= one->first,
              "{}: {} is columns {} to {} of {} and {} columns {} to {}, expected columns of their own", op, one->what,
              one->first, one->first + one->count - 1, one->tensor_name, other->what, other->first,
              other->first + other->count - 1);
    }
  }
}

}  // namespace

void check_ssd_inputs(const Context& ctx, const char* op, const SsdInputs& in) {
  require(in.heads >= 1, "{}: heads = {}, expected at least 1", op, in.heads);
  require(in.head_dim >= 1, "{}: head_dim = {}, expected at least 1", op, in.head_dim);
  require(in.groups >= 1 && in.heads % in.groups == 0, "{}: groups = {}, expected a divisor of the {} heads", op,
          in.groups, in.heads);
  require(in.state >= 1 && in.state <= kSsdMaxState, "{}: state = {}, expected 1 to {}", op, in.state, kSsdMaxState);
  require(in.dt_min >= 0 && in.dt_min <= in.dt_max, "{}: dt_min = {} and dt_max = {}, expected 0 <= dt_min <= dt_max",
          op, in.dt_min, in.dt_max);
  const Shape& shape = in.xbc.shape();
  require(in.xbc && shape.rank() == 3 && shape.elements() > 0, "{}: xbc is {}, expected [B, T, row]", op,
          in.xbc ? shape.str() : "empty");
  const DType stream = ctx.stream_dtype();
  const std::int64_t inner = in.heads * in.head_dim;
  const std::int64_t shared = in.groups * in.state;
  const Columns x{"x", "xbc", in.xbc, in.x_offset, inner};
  const Columns b{"B", "xbc", in.xbc, in.b_offset, shared};
  const Columns c{"C", "xbc", in.xbc, in.c_offset, shared};
  const Columns dt{"the step size", "dt", in.dt, in.dt_offset, in.heads};
  if (in.z) {
    check_parts(ctx, op, shape, {x, b, c, dt, {"the gate", "z", in.z, in.z_offset, inner}});
  } else {
    check_parts(ctx, op, shape, {x, b, c, dt});
  }
  check_tensor(ctx, op, "a_log", in.a_log, {in.heads}, stream);
  if (in.dt_bias) check_tensor(ctx, op, "dt_bias", in.dt_bias, {in.heads}, stream);
  if (in.skip) {
    const Shape per_head{in.heads}, per_channel{in.heads, in.head_dim};
    require(in.skip.shape() == per_head || in.skip.shape() == per_channel, "{}: skip is {}, expected {} or {}", op,
            in.skip.shape().str(), per_head.str(), per_channel.str());
    check_tensor(ctx, op, "skip", in.skip, in.skip.shape(), stream);
  }
  if (in.initial_state) {
    check_tensor(ctx, op, "initial_state", in.initial_state, {shape[0], in.heads, in.head_dim, in.state}, stream);
  }
}

}  // namespace graft
