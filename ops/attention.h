#pragma once

#include <cstdint>

#include "engine/kernel.h"

namespace graft {

/// Where queries, keys and values lie in a row of a packed projection. Head j's query is the `head_dim`
/// columns from q_offset + j * head_stride on; keys and values likewise. Columns outside of all of them
/// are padding: not read, their gradient is zero.
struct AttentionLayout {
  int heads = 1;
  int head_dim = 1;
  std::int64_t q_offset = 0;
  std::int64_t k_offset = 0;
  std::int64_t v_offset = 0;
  std::int64_t head_stride = 0;

  /// [all queries | all keys | all values], as in GPT-2.
  [[nodiscard]] static constexpr AttentionLayout blocks(int heads, int head_dim) {
    const std::int64_t width = std::int64_t{heads} * head_dim;
    return {heads, head_dim, 0, width, 2 * width, head_dim};
  }
  /// [query, key, value] of head 0, then of head 1, and so on, as in GPT-NeoX.
  [[nodiscard]] static constexpr AttentionLayout interleaved(int heads, int head_dim) {
    const std::int64_t size = head_dim;
    return {heads, head_dim, 0, size, 2 * size, 3 * size};
  }

  [[nodiscard]] GRAFT_HD constexpr std::int64_t width() const { return std::int64_t{heads} * head_dim; }
};

inline constexpr int kMaxAttentionHeadDim = 256;

struct AttentionForward {
  ConstView qkv;  // [B, T, row]
  View y;         // [B, T, heads * head_dim]
  View lse;       // [B, heads, T] natural logarithm of the sum of exponentials of a query's scaled scores
  AttentionLayout layout;
  double scale;
  Precision precision;
};
struct AttentionBackward {
  ConstView dy, qkv, y, lse;
  View delta;  // [B, heads, T] scratch for <dy, y> of each query and head
  GradTarget dqkv;
  AttentionLayout layout;
  double scale;
  Precision precision;
};
inline constinit Kernel<AttentionForward> attention_forward{"attention_forward"};
inline constinit Kernel<AttentionBackward> attention_backward{"attention_backward"};

/// Causal softmax attention over a packed projection, without ever holding the [T, T] weights:
///   y[i] = sum_{j <= i} p[i, j] v[j],   p[i, j] = exp(scale * <q[i], k[j]> - lse[i]),
///   lse[i] = log sum_{j <= i} exp(scale * <q[i], k[j]>),   for every batch entry and head on its own.
///   qkv     [B, T, row]  float32, bfloat16 or (CPU only) float64; T >= 1, any row that holds the layout
///   layout  heads, head_dim (1 to 256) and where q, k and v lie in a row
///   scale   factor of the scores, positive; 0 stands for 1 / sqrt(head_dim)
///   returns [B, T, heads * head_dim]  in qkv's dtype, head j in columns j * head_dim and on
/// Sums, softmax and lse are float32 (float64 when qkv is). float32 input is multiplied in float32, or
/// with its factors rounded to tf32 when the context's precision is tf32 (GPU only).
/// Saves qkv, y and lse; backward recomputes p, and is deterministic:
///   delta[i] = <dy[i], y[i]>,  ds[i, j] = p[i, j] (<dy[i], v[j]> - delta[i]),
///   dq = scale * ds k,  dk = scale * ds^T q,  dv = p^T dy.
/// Throws ArgumentError if qkv is not [B, T, row] of a floating type, if the layout's parts overlap or
/// leave the row, if head_dim or scale is out of range, or for float64 on a GPU.
/// Source: Vaswani et al. 2017, section 3.2.1; tiling and backward: Dao 2023 (FlashAttention-2), section 3.
[[nodiscard]] Tensor causal_attention(const Context& ctx, const Tensor& qkv, const AttentionLayout& layout,
                                      double scale = 0.0);

}  // namespace graft
