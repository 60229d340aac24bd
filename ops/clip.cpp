#include "ops/clip.h"

#include "engine/require.h"

namespace graft {

void clip_by_global_norm(const Context& ctx, const Tensor& gradients, double max_norm, const Tensor& loss) {
  require(ctx.state != nullptr, "clip_by_global_norm: the context has no step state");
  require(gradients.dtype() == ctx.stream_dtype(), "clip_by_global_norm: gradients are {}, expected {} in {}",
          name_of(gradients.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
  require(!loss || (loss.elements() == 1 && loss.dtype() == gradients.dtype()),
          "clip_by_global_norm: the loss is {} {}, expected one element of {}", loss.shape().str(),
          name_of(loss.dtype()), name_of(gradients.dtype()));
  const Tensor partial = ctx.empty({clip_blocks(gradients.elements())}, DType::F64, "clip partial sums");
  clip_norm(ctx, {gradients.view(), partial.mutable_view(), loss ? loss.view() : ConstView{}, ctx.state, max_norm});
}

}  // namespace graft
