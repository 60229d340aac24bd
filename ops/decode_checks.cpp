#include "ops/decode_checks.h"

#include "engine/require.h"

namespace graft {

void check_inference(const Context& ctx, const char* op) {
  require(ctx.tape == nullptr, "{}: a tape is recording, expected inference: extending a sequence has no gradient", op);
}

void check_token_count(const char* op, const char* name, const Tensor& count) {
  require(count && count.shape() == Shape{1} && count.dtype() == DType::I32, "{}: {} is {} {}, expected [1] int32", op,
          name, count ? count.shape().str() : "empty", name_of(count.dtype()));
}

}  // namespace graft
