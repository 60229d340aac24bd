#include "ops/gather_positions.h"

#include "engine/require.h"

namespace graft {

Tensor gather_positions(const Context& ctx, const Tensor& x, std::int64_t count, std::int64_t stride,
                        std::int64_t offset, std::int64_t columns) {
  require(x.shape().rank() == 3, "gather_positions: x is {}, expected [B, T, C]", x.shape().str());
  require(count >= 1 && stride >= 1 && offset >= 0 && (count - 1) * stride + offset < x.shape()[1],
          "gather_positions: {} positions {} apart from {} on, expected within the {} of x", count, stride, offset,
          x.shape()[1]);
  require(columns >= 1 && columns <= x.shape()[2], "gather_positions: {} columns, expected 1..{}", columns,
          x.shape()[2]);
  Tensor y = ctx.empty({x.shape()[0], count, columns}, ctx.stream_dtype(), "gathered positions");
  gather_positions_kernel(ctx, {x.view(), y.mutable_view(), stride, offset});
  return y;
}

}  // namespace graft
