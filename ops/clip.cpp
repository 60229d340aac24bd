#include "ops/clip.h"

#include "engine/require.h"

namespace graft {

void clip_by_global_norm(const Context& ctx, const Tensor& gradients, double max_norm) {
  require(ctx.state != nullptr, "clip_by_global_norm: the context has no step state");
  require(gradients.dtype() == ctx.stream_dtype(), "clip_by_global_norm: gradients are {}, expected {} in {}",
          name_of(gradients.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
  const Tensor partial = ctx.empty({clip_blocks(gradients.elements())}, DType::F64, "clip partial sums");
  clip_norm(ctx, {gradients.view(), partial.mutable_view(), ctx.state, max_norm});
}

}  // namespace graft
