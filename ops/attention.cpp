#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {
namespace {

// Each head's q, k and v must lie in the row and share no column: backward writes every part once.
void check_layout(const AttentionLayout& layout, std::int64_t row) {
  require(layout.heads >= 1, "causal_attention: {} heads, expected at least 1", layout.heads);
  require(layout.head_dim >= 1 && layout.head_dim <= kMaxAttentionHeadDim,
          "causal_attention: head_dim is {}, expected 1 to {}", layout.head_dim, kMaxAttentionHeadDim);
  std::vector<std::int64_t> starts;
  starts.reserve(3 * static_cast<std::size_t>(layout.heads));
  for (const std::int64_t offset : {layout.q_offset, layout.k_offset, layout.v_offset}) {
    for (int head = 0; head < layout.heads; ++head) starts.push_back(offset + head * layout.head_stride);
  }
  std::sort(starts.begin(), starts.end());
  require(starts.front() >= 0 && starts.back() + layout.head_dim <= row,
          "causal_attention: the layout reads columns {} to {}, expected within a row of {}", starts.front(),
          starts.back() + layout.head_dim, row);
  for (std::size_t i = 1; i < starts.size(); ++i) {
    require(starts[i] - starts[i - 1] >= layout.head_dim,
            "causal_attention: parts of {} columns start at columns {} and {}, expected parts that do not overlap",
            layout.head_dim, starts[i - 1], starts[i]);
  }
}

}  // namespace

Tensor causal_attention(const Context& ctx, const Tensor& qkv, const AttentionLayout& layout, double scale) {
  const Shape& shape = qkv.shape();
  require(shape.rank() == 3 && shape.elements() > 0, "causal_attention: qkv is {}, expected [B, T, row]", shape.str());
  require(is_floating(qkv.dtype()), "causal_attention: qkv is {}, expected float32, bfloat16 or float64",
          name_of(qkv.dtype()));
  require(qkv.dtype() != DType::F64 || ctx.backend == Backend::Cpu,
          "causal_attention: qkv is float64, expected float32 or bfloat16 on a GPU");
  require(shape[1] < std::numeric_limits<int>::max() / 2 && shape[2] < std::numeric_limits<int>::max(),
          "causal_attention: qkv is {}, expected extents that fit in 31 bits", shape.str());
  check_layout(layout, shape[2]);
  require(std::isfinite(scale) && scale >= 0, "causal_attention: scale is {}, expected a positive factor or 0", scale);
  if (scale == 0) scale = 1 / std::sqrt(static_cast<double>(layout.head_dim));

  const DType statistics = qkv.dtype() == DType::F64 ? DType::F64 : DType::F32;
  const Shape rows{shape[0], layout.heads, shape[1]};
  Tensor y = ctx.empty({shape[0], shape[1], layout.width()}, qkv.dtype(), "attention y");
  const Tensor lse = ctx.empty(rows, statistics, "attention lse");
  attention_forward(ctx, {qkv.view(), y.mutable_view(), lse.mutable_view(), layout, scale, ctx.precision});
  if (ctx.tape == nullptr) return y;
  // A node that holds its own output would keep it alive for no other reason than itself, but y is what
  // the next op saves anyway, and delta needs it.
  ctx.tape->record("causal_attention", {qkv}, y,
                   [qkv, y, lse, rows, layout, scale](const Context& c, Grads& grads, const GradRef& dy) {
                     const GradTarget dqkv = grads.into(qkv);
                     if (!dqkv) return;
                     const Tensor delta = c.empty(rows, lse.dtype(), "attention delta");
                     attention_backward(c, {grads.of(dy), qkv.view(), y.view(), lse.view(), delta.mutable_view(), dqkv,
                                            layout, scale, c.precision});
                   });
  return y;
}

}  // namespace graft
