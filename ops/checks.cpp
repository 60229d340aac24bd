#include "ops/checks.h"

#include "engine/require.h"

namespace graft {

void check_tensor(const Context& ctx, const char* op, const char* name, const Tensor& tensor, const Shape& shape,
                  DType dtype) {
  require(tensor && tensor.shape() == shape, "{}: {} is {}, expected {}", op, name,
          tensor ? tensor.shape().str() : "empty", shape.str());
  require(tensor.dtype() == dtype, "{}: {} is {}, expected {} in {}", op, name, name_of(tensor.dtype()), name_of(dtype),
          name_of(ctx.precision));
}

void check_columns(const Context& ctx, const char* op, const char* name, const Tensor& tensor, std::int64_t batch,
                   std::int64_t tokens, std::int64_t offset, std::int64_t count, const char* what) {
  const Shape& shape = tensor.shape();
  require(tensor && shape.rank() == 3 && shape[0] == batch && shape[1] == tokens,
          "{}: {} is {}, expected [{}, {}, row]", op, name, tensor ? shape.str() : "empty", batch, tokens);
  require(tensor.dtype() == ctx.compute_dtype(), "{}: {} is {}, expected {} in {}", op, name, name_of(tensor.dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.precision));
  require(offset >= 0 && offset + count <= shape[2], "{}: {} is columns {} to {} of {}, expected columns within its {}",
          op, what, offset, offset + count - 1, name, shape[2]);
}

}  // namespace graft
