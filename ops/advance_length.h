#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct AdvanceLength {
  View length;  // [1] int32
  std::int32_t tokens;
};
inline constinit Kernel<AdvanceLength> advance_length_kernel{"advance_length"};

/// length += tokens, on the device: how many tokens a model has read. Where a step is captured, this is what makes its
/// next replay read the next ones.
///   length  [1] int32
/// Throws ArgumentError for another shape or dtype, and for a negative number of tokens.
void advance_length(const Context& ctx, const Tensor& length, std::int64_t tokens);

}  // namespace graft
