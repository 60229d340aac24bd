#include "ops/advance_length.h"

#include <limits>

#include "engine/require.h"
#include "ops/decode_checks.h"

namespace graft {

void advance_length(const Context& ctx, const Tensor& length, std::int64_t tokens) {
  check_token_count("advance_length", "length", length);
  require(tokens >= 0 && tokens <= std::numeric_limits<std::int32_t>::max(),
          "advance_length: {} tokens, expected 0 to {}", tokens, std::numeric_limits<std::int32_t>::max());
  advance_length_kernel(ctx, {length.mutable_view(), static_cast<std::int32_t>(tokens)});
}

}  // namespace graft
