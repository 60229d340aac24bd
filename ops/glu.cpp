#include "ops/glu.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor glu(const Context& ctx, const Tensor& x) {
  const Shape& shape = x.shape();
  require(shape.rank() >= 1 && shape.columns() >= 2 && shape.columns() % 2 == 0, "glu: x is {}, expected [..., 2H]",
          shape.str());
  require(is_floating(x.dtype()), "glu: x is {}, expected float32, bfloat16 or float64", name_of(x.dtype()));
  Tensor y = ctx.empty(shape.with_columns(shape.columns() / 2), x.dtype(), "glu");
  glu_forward(ctx, {x.view(), y.mutable_view()});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("glu", {x}, y, [x](const Context& c, Grads& grads, const GradRef& dy) {
    glu_backward(c, {grads.of(dy), x.view(), grads.into(x)});
  });
  return y;
}

}  // namespace graft
