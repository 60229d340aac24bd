#include "ops/columns.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor columns(const Context& ctx, const Tensor& x, std::int64_t offset, std::int64_t count) {
  require(is_floating(x.dtype()) && x.shape().rank() >= 1, "columns: x is {} {}, expected floating [..., C]",
          name_of(x.dtype()), x.shape().str());
  require(offset >= 0 && count >= 1 && offset + count <= x.shape().columns(),
          "columns: {}..{}, expected within the {} of x", offset, offset + count, x.shape().columns());
  Tensor y = ctx.empty(x.shape().with_columns(round_up(count, 8)), x.dtype(), "columns");
  columns_forward(ctx, {x.view(), y.mutable_view(), offset, count});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("columns", {x}, y,
                   [x = GradRef(x), offset, count](const Context& c, Grads& grads, const GradRef& dy) {
                     columns_backward(c, {grads.of(dy), grads.into_columns(x, offset, count), offset, count});
                   });
  return y;
}

}  // namespace graft
