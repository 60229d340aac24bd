#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct CausalConv1dForward {
  ConstView x;       // [B, T, row]
  ConstView weight;  // [channels, width]
  ConstView bias;    // [channels] or null
  View y;            // [B, T, channels]
  std::int64_t offset = 0;
  bool silu = false;
};

struct CausalConv1dBackward {
  ConstView dy;      // [B, T, channels]
  ConstView x;       // [B, T, row]
  ConstView weight;  // [channels, width]
  ConstView bias;    // [channels] or null
  View partial;      // [causal_conv1d_parts(...), width + 1, channels] scratch, or null if dweight and dbias are absent
  GradTarget dx;     // [B, T, row], of which the kernel writes columns [offset, offset + channels)
  GradTarget dweight, dbias;
  std::int64_t offset = 0;
  bool silu = false;
};

inline constinit Kernel<CausalConv1dForward> causal_conv1d_forward{"causal_conv1d_forward"};
inline constinit Kernel<CausalConv1dBackward> causal_conv1d_backward{"causal_conv1d_backward"};

/// Taps that causal_conv1d takes: CUDA threads keep the inputs they still need in registers.
inline constexpr std::int64_t kCausalConvMinWidth = 2;
inline constexpr std::int64_t kCausalConvMaxWidth = 4;

/// Tokens [first, last) of one sequence: the piece that backward works on at a time.
struct CausalConvPiece {
  std::int64_t sequence, first, last;
};

/// How backward splits B sequences of T tokens into pieces, and the pieces into parts with a partial sum each. Like the
/// sums themselves a function of shapes alone.
struct CausalConvSplit {
  std::int64_t tokens, pieces_a_sequence, steps, pieces, parts;

  [[nodiscard]] GRAFT_HD CausalConvPiece piece(std::int64_t index) const {
    const std::int64_t sequence = index / pieces_a_sequence;
    const std::int64_t first = (index - sequence * pieces_a_sequence) * steps;
    return {sequence, first, first + steps < tokens ? first + steps : tokens};
  }
};

/// `longest`: tokens of a piece at most. A piece reads width - 1 tokens beyond each end again.
[[nodiscard]] constexpr CausalConvSplit causal_conv1d_split(std::int64_t batch, std::int64_t tokens,
                                                            std::int64_t channels, std::int64_t longest = 32) {
  const std::int64_t pieces_a_sequence = ceil_div(tokens, longest);
  const std::int64_t pieces = batch * pieces_a_sequence;
  // about a thousand thread blocks of 8 pieces by 128 channels; more parts would be more to add up afterwards
  const std::int64_t most = std::clamp<std::int64_t>(1024 / ceil_div(channels, 128), 16, 512);
  return {tokens, pieces_a_sequence, ceil_div(tokens, pieces_a_sequence), pieces,
          std::clamp<std::int64_t>(ceil_div(pieces, 8), 1, most)};
}

/// Depthwise convolution along the tokens that sees no later token:
///   v[b,t,c] = bias[c] + sum_{j < width} weight[c,j] x[b, t - (width - 1) + j, offset + c],   y = v or silu(v),
/// inputs before the first token being zero. The last tap multiplies the current token.
///   x        [B, T, row]        the compute dtype; channels are its columns [offset, offset + channels)
///   weight   [channels, width]  the compute dtype or the stream dtype; width 2 to 4
///   bias     [channels]         likewise; an empty tensor: none
///   returns  [B, T, channels]   the compute dtype; sums are in the stream dtype
/// Saves x alone: backward computes v again. Gradients of weight and bias are sums over fixed parts of the tokens.
/// Throws ArgumentError if shapes do not fit, for columns beyond the row, and for dtypes that do not fit the precision.
/// Source: Gu & Dao 2023, section 3.4 (the convolution of the block; as in torch.nn.Conv1d with groups = channels
/// and padding = width - 1, cut to T outputs).
Tensor causal_conv1d(const Context& ctx, const Tensor& x, std::int64_t offset, std::int64_t channels,
                     const Tensor& weight, const Tensor& bias, bool silu);

}  // namespace graft
