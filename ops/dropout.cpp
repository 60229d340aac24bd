#include "ops/dropout.h"

#include <cmath>

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor dropout(const Context& ctx, const Tensor& x, double p, std::uint32_t purpose, bool shared_over_time,
               std::uint32_t first_example) {
  const Shape& shape = x.shape();
  require(p >= 0 && p < 1, "dropout: p is {}, expected 0 <= p < 1", p);
  require(purpose < (1U << 16U), "dropout: purpose is {}, expected below 65536", purpose);
  require(is_floating(x.dtype()), "dropout: x is {}, expected float32, bfloat16 or float64", name_of(x.dtype()));
  require(!shared_over_time || shape.rank() == 3, "dropout: x is {}, expected [B, T, D] for a mask shared over time",
          shape.str());
  if (!ctx.training || p == 0) return x;
  require(shape.rank() >= 1 && shape.elements() > 0, "dropout: x is {}, expected [B, ...]", shape.str());
  require(ctx.state != nullptr, "dropout: the context has no step state, expected one in training");

  DropoutMask mask{.examples = shape[0], .purpose = purpose, .first_example = first_example};
  mask.repeats = shared_over_time ? shape[1] : 1;
  mask.draws = shape.elements() / (mask.examples * mask.repeats);
  require(mask.draws <= (std::int64_t{1} << 32), "dropout: x is {}, expected at most 2^32 draws an example",
          shape.str());
  mask.threshold = static_cast<std::uint32_t>(std::fmin(std::round(p * 0x1p32), 0x1p32 - 1));
  mask.scale = 1 / (1 - p);

  Tensor y = ctx.empty(shape, x.dtype(), "dropout");
  const StepState* const state = ctx.state;
  dropout_forward(ctx, {state, x.view(), {y.mutable_view(), false}, mask});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("dropout", {x}, y,
                   [ref = GradRef(x), state, mask](const Context& c, Grads& grads, const GradRef& dy) {
                     dropout_backward(c, {state, grads.of(dy), grads.into(ref), mask});
                   });
  return y;
}

}  // namespace graft
