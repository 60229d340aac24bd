#include "ops/decode_checks.h"

#include "engine/require.h"

namespace graft {

void check_inference(const Context& ctx, const char* op) {
  require(ctx.tape == nullptr, "{}: a tape is recording, expected inference: extending a sequence has no gradient", op);
}

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
          op, what, offset, offset + count, name, shape[2]);
}

void check_token_count(const char* op, const char* name, const Tensor& count) {
  require(count && count.shape() == Shape{1} && count.dtype() == DType::I32, "{}: {} is {} {}, expected [1] int32", op,
          name, count ? count.shape().str() : "empty", name_of(count.dtype()));
}

}  // namespace graft
