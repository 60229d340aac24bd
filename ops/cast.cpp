#include "ops/cast.h"

#include "engine/basic_kernels.h"
#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor cast(const Context& ctx, const Tensor& x, DType dtype) {
  require(is_floating(x.dtype()) && is_floating(dtype), "cast: from {} to {}, expected floating dtypes",
          name_of(x.dtype()), name_of(dtype));
  if (x.dtype() == dtype) return x;
  Tensor y = ctx.empty(x.shape(), dtype, "cast");
  copy_cast(ctx, {y.mutable_view(), x.view()});
  if (ctx.tape != nullptr) {
    ctx.tape->record("cast", {x}, y, [x = GradRef(x)](const Context&, Grads& grads, const GradRef& dy) {
      grads.pass(x, grads.tensor(dy));
    });
  }
  return y;
}

}  // namespace graft
