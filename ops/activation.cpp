#include "ops/activation.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor activation(const Context& ctx, const Tensor& x, Activation kind) {
  require(is_floating(x.dtype()), "activation: x is {}, expected float32, bfloat16 or float64", name_of(x.dtype()));
  require(kind != Activation::None, "activation: the activation is none, expected a function");
  Tensor y = ctx.empty(x.shape(), x.dtype(), "activation");
  activation_forward(ctx, {x.view(), y.mutable_view(), kind});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("activation", {x}, y, [x, kind](const Context& c, Grads& grads, const GradRef& dy) {
    activation_backward(c, {grads.of(dy), x.view(), grads.into(x), kind});
  });
  return y;
}

}  // namespace graft
