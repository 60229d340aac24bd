#include "ops/add.h"

#include "engine/basic_kernels.h"
#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor add(const Context& ctx, const Tensor& a, const Tensor& b) {
  require(a.shape() == b.shape(), "add: b is {}, expected the shape {} of a", b.shape().str(), a.shape().str());
  require(a.dtype() == ctx.stream_dtype() && b.dtype() == ctx.stream_dtype(), "add: {} and {}, expected {} in {}",
          name_of(a.dtype()), name_of(b.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
  Tensor sum = ctx.empty(a.shape(), ctx.stream_dtype(), "sum");
  copy_cast(ctx, {sum.mutable_view(), a.view()});
  add_to(ctx, {sum.mutable_view(), b.view()});
  if (ctx.tape == nullptr) return sum;
  ctx.tape->record("add", {a, b}, sum,
                   [a = GradRef(a), b = GradRef(b)](const Context&, Grads& grads, const GradRef& dsum) {
                     const Tensor gradient = grads.tensor(dsum);
                     grads.pass(a, gradient);
                     grads.pass(b, gradient);
                   });
  return sum;
}

}  // namespace graft
