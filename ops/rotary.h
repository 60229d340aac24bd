#pragma once

#include <cmath>
#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"
#include "ops/attention.h"

namespace graft {

inline constexpr int kMaxRotaryPairs = kMaxAttentionHeadDim / 2;

struct RotaryArgs {
  ConstView x;   // [B, T, row] or its gradient
  GradTarget y;  // [B, T, row]
  AttentionLayout layout;
  int pairs = 0;
  double direction = 1;                      // -1 turns back
  double frequencies[kMaxRotaryPairs] = {};  // radians a position
  ConstView start;                           // [1] int32: position of token 0; null: 0
};

inline constinit Kernel<RotaryArgs> rotary_forward{"rotary_forward"};
inline constinit Kernel<RotaryArgs> rotary_backward{"rotary_backward"};

/// position * frequency, less whole turns: in double, since the product of two floats is off by 0.004 rad at position
/// 1e5, and small enough afterwards for the fast path of sine and cosine in float.
[[nodiscard]] GRAFT_HD inline double rotary_angle(std::int64_t position, double frequency) {
  const double angle = static_cast<double>(position) * frequency;
  return angle - 6.283185307179586476925 * std::rint(angle * 0.15915494309189533577);
}

/// What a column of a packed row is to the rotation.
struct RotaryColumn {
  int pair = -1;        // which frequency; -1: the column is copied
  bool second = false;  // in the second half of the rotated columns: its partner is `pairs` columns before it
};

[[nodiscard]] GRAFT_HD inline RotaryColumn rotary_column(const AttentionLayout& layout, int pairs, int column) {
  const auto stride = static_cast<int>(layout.head_stride);
  for (const std::int64_t offset : {layout.q_offset, layout.k_offset}) {
    const int distance = column - static_cast<int>(offset);
    if (distance < 0) continue;
    const int head = distance / stride;
    const int within = distance - head * stride;
    if (head >= layout.heads || within >= 2 * pairs) continue;
    return {within < pairs ? within : within - pairs, within >= pairs};
  }
  return {};
}

/// Rotary position embedding of the queries and keys inside a packed projection; values and other columns are copied.
/// With h = rotary_dims / 2, for the first rotary_dims columns of every head's q and k at position t = 0 .. T - 1:
///   y[i]     = x[i] cos(t w_i) - x[i + h] sin(t w_i),
///   y[i + h] = x[i + h] cos(t w_i) + x[i] sin(t w_i),   w_i = base^(-2 i / rotary_dims),  i < h.
///   qkv          [B, T, row]  float32, bfloat16 or (CPU only) float64
///   layout       where q, k and v of the heads lie in a row, as for causal_attention()
///   rotary_dims  even, 0 to head_dim; 0 returns qkv itself
///   start        [1] int32 on the device: positions are start + t; an empty tensor: 0
///   returns      [B, T, row]  a new tensor in qkv's dtype
/// Angles are exact to float32's rounding at any position: they are reduced in double. The rotation itself is float32
/// (float64 when qkv is), rounded once. Saves nothing; backward turns the gradient back.
/// Throws ArgumentError if qkv is not [B, T, row] of a floating type, if rotary_dims or base is out of range, if start
/// is not [1] int32 or given while a tape is recording, or if the layout's q and k overlap or leave the row.
/// Source: Su et al. 2021 (RoFormer), section 3.2.2; pairing of halves: transformers, gpt_neox, apply_rotary_pos_emb.
[[nodiscard]] Tensor rotary(const Context& ctx, const Tensor& qkv, const AttentionLayout& layout,
                            std::int64_t rotary_dims, double base = 10000.0, const Tensor& start = {});

}  // namespace graft
