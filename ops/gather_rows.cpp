#include "ops/gather_rows.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor gather_rows(const Context& ctx, const Tensor& x, const Tensor& positions) {
  require(x.shape().rank() == 3, "gather_rows: x is {}, expected [B, T, C]", x.shape().str());
  require(is_floating(x.dtype()), "gather_rows: x is {}, expected a floating dtype", name_of(x.dtype()));
  require(positions.dtype() == DType::I32, "gather_rows: positions are {}, expected int32", name_of(positions.dtype()));
  require(positions.shape().rank() == 2 && positions.shape()[0] == x.shape()[0] && positions.shape()[1] >= 1,
          "gather_rows: positions are {}, expected [{}, N]", positions.shape().str(), x.shape()[0]);
  Tensor y = ctx.empty({x.shape()[0], positions.shape()[1], x.shape()[2]}, x.dtype(), "gathered rows");
  gather_rows_forward(ctx, {x.view(), positions.view(), y.mutable_view()});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("gather_rows", {x}, y,
                   [positions, x_ref = GradRef(x)](const Context& c, Grads& grads, const GradRef& dy) {
                     gather_rows_backward(c, {grads.of(dy), positions.view(), grads.into(x_ref)});
                   });
  return y;
}

}  // namespace graft
