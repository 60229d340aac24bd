#include "ops/argmax.h"

#include <limits>

#include "engine/require.h"

namespace graft {
namespace {

Shape without_columns(const Shape& shape) {
  switch (shape.rank()) {
    case 1:
      return {};
    case 2:
      return {shape[0]};
    case 3:
      return {shape[0], shape[1]};
    case 4:
      return {shape[0], shape[1], shape[2]};
    default:
      return {shape[0], shape[1], shape[2], shape[3]};
  }
}

}  // namespace

Tensor argmax(const Context& ctx, const Tensor& x, std::int64_t columns, DType dtype) {
  require(x.shape().rank() >= 1, "argmax: x is {}, expected [..., columns]", x.shape().str());
  require(is_floating(x.dtype()), "argmax: x is {}, expected a floating dtype", name_of(x.dtype()));
  require(columns >= 0 && columns <= x.shape().columns(), "argmax: {} columns, expected 0..{}", columns,
          x.shape().columns());
  require(dtype == DType::I32 || dtype == ctx.stream_dtype(), "argmax: the result is {}, expected int32 or {}",
          name_of(dtype), name_of(ctx.stream_dtype()));
  if (columns == 0) columns = x.shape().columns();
  const std::int64_t most = dtype == DType::F32 ? std::int64_t{1} << 24U : std::numeric_limits<std::int32_t>::max();
  require(columns >= 1 && columns <= most, "argmax: {} columns, expected 1..{} for a result in {}", columns, most,
          name_of(dtype));
  Tensor y = ctx.empty(without_columns(x.shape()), dtype, "argmax");
  argmax_kernel(ctx, {x.view(), y.mutable_view(), columns});
  return y;
}

}  // namespace graft
