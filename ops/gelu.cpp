#include "ops/gelu.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor gelu(const Context& ctx, const Tensor& x, GeluKind kind) {
  require(is_floating(x.dtype()), "gelu: x is {}, expected float32, bfloat16 or float64", name_of(x.dtype()));
  Tensor y = ctx.empty(x.shape(), x.dtype(), "gelu");
  gelu_forward(ctx, {x.view(), y.mutable_view(), kind});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("gelu", {x}, y, [x, kind](const Context& c, Grads& grads, const GradRef& dy) {
    gelu_backward(c, {grads.of(dy), x.view(), grads.into(x), kind});
  });
  return y;
}

}  // namespace graft
