#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"
#include "ops/causal_conv1d.h"

namespace graft {

struct CausalConv1dExtension {
  ConstView x;       // [B, n, row]
  ConstView weight;  // [channels, width]
  ConstView bias;    // [channels] or null
  View state;        // [B, width - 1, channels]
  View y;            // [B, n, channels]
  std::int64_t offset = 0;
  bool silu = false;
};
inline constinit Kernel<CausalConv1dExtension> causal_conv1d_extension{"causal_conv1d_extension"};

/// causal_conv1d() of n further tokens: the inputs before the first of them are not zero but what the state holds, the
/// last width - 1 inputs, oldest first. Afterwards it holds the last ones of these tokens. A state of zeros stands
/// before the first token of a sequence.
///   x        [B, n, row]                the compute dtype; channels are its columns [offset, offset + channels)
///   weight   [channels, width]          the compute dtype or the stream dtype; width 2 to 4
///   bias     [channels]                 likewise; an empty tensor: none
///   state    [B, width - 1, channels]   the compute dtype, read and written
///   returns  [B, n, channels]           the compute dtype; sums are in the stream dtype, in causal_conv1d()'s order
/// Throws ArgumentError if a shape or dtype does not fit, or where a tape is recording.
[[nodiscard]] Tensor extend_causal_conv1d(const Context& ctx, const Tensor& x, std::int64_t offset,
                                          std::int64_t channels, const Tensor& weight, const Tensor& bias, bool silu,
                                          const Tensor& state);

}  // namespace graft
