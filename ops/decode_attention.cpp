#include "ops/decode_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/require.h"
#include "ops/decode_checks.h"

namespace graft {
namespace {

constexpr const char* kOp = "extend_attention";

void check_layout(const AttentionLayout& layout, std::int64_t row) {
  require(layout.heads >= 1 && layout.head_dim >= 1 && layout.head_dim <= kMaxAttentionHeadDim,
          "{}: {} heads of {} columns, expected at least 1 of 1 to {}", kOp, layout.heads, layout.head_dim,
          kMaxAttentionHeadDim);
  const auto [lowest, highest] = std::minmax({layout.q_offset, layout.k_offset, layout.v_offset});
  const std::int64_t span = (layout.heads - 1) * layout.head_stride;
  const std::int64_t first = lowest + std::min<std::int64_t>(span, 0);
  const std::int64_t last = highest + std::max<std::int64_t>(span, 0) + layout.head_dim;
  require(first >= 0 && last <= row, "{}: the layout reads columns {} to {}, expected within a row of {}", kOp, first,
          last, row);
}

}  // namespace

Tensor extend_attention(const Context& ctx, const Tensor& qkv, const AttentionLayout& layout, const Tensor& keys,
                        const Tensor& values, const Tensor& length, double scale) {
  check_inference(ctx, kOp);
  const Shape& shape = qkv.shape();
  require(qkv && shape.rank() == 3 && shape.elements() > 0, "{}: qkv is {}, expected [B, n, row]", kOp,
          qkv ? shape.str() : "empty");
  check_tensor(ctx, kOp, "qkv", qkv, shape, ctx.compute_dtype());
  check_layout(layout, shape[2]);
  const Shape& cache = keys.shape();
  require(keys && cache.rank() == 4 && cache[0] == shape[0] && cache[1] == layout.heads && cache[2] >= 1 &&
              cache[3] == layout.head_dim,
          "{}: keys are {}, expected [{}, {}, capacity, {}]", kOp, keys ? cache.str() : "empty", shape[0], layout.heads,
          layout.head_dim);
  require(shape[1] <= cache[2] && cache[2] < std::numeric_limits<int>::max() / 2,
          "{}: {} tokens for a cache of {}, expected at most as many, and fewer than 2^30", kOp, shape[1], cache[2]);
  check_tensor(ctx, kOp, "keys", keys, cache, ctx.compute_dtype());
  check_tensor(ctx, kOp, "values", values, cache, ctx.compute_dtype());
  check_token_count(kOp, "length", length);
  require(std::isfinite(scale) && scale >= 0, "{}: scale is {}, expected a positive factor or 0", kOp, scale);
  if (scale == 0) scale = 1 / std::sqrt(static_cast<double>(layout.head_dim));

  Tensor y = ctx.empty({shape[0], shape[1], layout.width()}, qkv.dtype(), kOp);
  attention_extension(
      ctx, {qkv.view(), length.view(), keys.mutable_view(), values.mutable_view(), y.mutable_view(), layout, scale});
  return y;
}

}  // namespace graft
