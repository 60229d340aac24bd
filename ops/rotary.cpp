#include "ops/rotary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/require.h"
#include "engine/tape.h"
#include "ops/decode_checks.h"

namespace graft {
namespace {

// Every rotated column belongs to one head's q or k.
void check_layout(const AttentionLayout& layout, std::int64_t row) {
  require(layout.heads >= 1 && layout.head_dim >= 1 && layout.head_dim <= kMaxAttentionHeadDim,
          "rotary: {} heads of {} columns, expected at least 1 of 1 to {}", layout.heads, layout.head_dim,
          kMaxAttentionHeadDim);
  require(layout.heads == 1 || layout.head_stride >= layout.head_dim,
          "rotary: heads of {} columns are {} columns apart, expected at least {}", layout.head_dim, layout.head_stride,
          layout.head_dim);
  std::vector<std::int64_t> starts;
  for (const std::int64_t offset : {layout.q_offset, layout.k_offset}) {
    for (int head = 0; head < layout.heads; ++head) starts.push_back(offset + head * layout.head_stride);
  }
  std::sort(starts.begin(), starts.end());
  require(starts.front() >= 0 && starts.back() + layout.head_dim <= row,
          "rotary: the layout reads columns {} to {}, expected within a row of {}", starts.front(),
          starts.back() + layout.head_dim, row);
  for (std::size_t i = 1; i < starts.size(); ++i) {
    require(starts[i] - starts[i - 1] >= layout.head_dim,
            "rotary: parts of {} columns start at columns {} and {}, expected parts that do not overlap",
            layout.head_dim, starts[i - 1], starts[i]);
  }
}

}  // namespace

Tensor rotary(const Context& ctx, const Tensor& qkv, const AttentionLayout& layout, std::int64_t rotary_dims,
              double base, const Tensor& start) {
  const Shape& shape = qkv.shape();
  require(shape.rank() == 3 && shape.elements() > 0, "rotary: qkv is {}, expected [B, T, row]", shape.str());
  require(is_floating(qkv.dtype()), "rotary: qkv is {}, expected float32, bfloat16 or float64", name_of(qkv.dtype()));
  require(shape[1] < std::numeric_limits<int>::max() && shape[2] < std::numeric_limits<int>::max(),
          "rotary: qkv is {}, expected extents that fit in 31 bits", shape.str());
  check_layout(layout, shape[2]);
  require(rotary_dims >= 0 && rotary_dims <= layout.head_dim && rotary_dims % 2 == 0,
          "rotary: {} rotary dims, expected an even number from 0 to {}, the head's", rotary_dims, layout.head_dim);
  require(std::isfinite(base) && base > 0, "rotary: base is {}, expected a positive number", base);
  if (rotary_dims == 0) return qkv;

  RotaryArgs args{.x = qkv.view(), .layout = layout, .pairs = static_cast<int>(rotary_dims / 2)};
  if (layout.heads == 1) args.layout.head_stride = shape[2];  // kernels divide by it
  for (int i = 0; i < args.pairs; ++i) {
    args.frequencies[i] = std::pow(base, -2.0 * i / static_cast<double>(rotary_dims));
  }
  if (start) {
    check_inference(ctx, "rotary");
    check_token_count("rotary", "start", start);
    args.start = start.view();
  }
  Tensor y = ctx.empty(shape, qkv.dtype(), "rotary");
  args.y = {y.mutable_view(), false};
  rotary_forward(ctx, args);
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("rotary", {qkv}, y, [ref = GradRef(qkv), args](const Context& c, Grads& grads, const GradRef& dy) {
    RotaryArgs back = args;
    back.x = grads.of(dy);
    back.y = grads.into(ref);
    back.direction = -1;
    rotary_backward(c, back);
  });
  return y;
}

}  // namespace graft
