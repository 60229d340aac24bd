#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"
#include "ops/attention.h"

namespace graft {

struct AttentionExtension {
  ConstView qkv;      // [B, n, row]
  ConstView length;   // [1] int32
  View keys, values;  // [B, heads, capacity, head_dim]
  View y;             // [B, n, heads * head_dim]
  AttentionLayout layout;
  double scale;
};
inline constinit Kernel<AttentionExtension> attention_extension{"attention_extension"};

/// Causal softmax attention of n further tokens to all tokens read so far and to each other:
///   keys[length + i] = k[i], values[length + i] = v[i],   i < n,
///   y[i] = sum_{j <= length + i} p[i, j] values[j],   p[i, j] ~ exp(scale * <q[i], keys[j]>), with sum 1,
/// for every batch entry and head on its own: the rows that causal_attention() gives for these tokens at the end of the
/// whole sequence.
///   qkv           [B, n, row]                     the compute dtype; n >= 1
///   layout        heads, head_dim (1 to 256) and where q, k and v lie in a row
///   keys, values  [B, heads, capacity, head_dim]  the compute dtype; positions before `length` are read, n are written
///   length        [1] int32 on the device, tokens read before these
///   scale         factor of the scores, positive; 0 stands for 1 / sqrt(head_dim)
///   returns       [B, n, heads * head_dim]        the compute dtype, head j in columns j * head_dim and on
/// Sums and softmax are float32 (float64 in fp64), products too in every precision. A token whose position is not
/// within the capacity is not stored and gives a row of NaN: the host cannot look at `length`, and a NaN is seen.
/// Throws ArgumentError if a shape or dtype does not fit, or where a tape is recording.
/// Source: Vaswani et al. 2017, section 3.2.1; online softmax: Milakov & Gimelshein 2018, algorithm 3.
[[nodiscard]] Tensor extend_attention(const Context& ctx, const Tensor& qkv, const AttentionLayout& layout,
                                      const Tensor& keys, const Tensor& values, const Tensor& length,
                                      double scale = 0.0);

}  // namespace graft
