#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct GatherPositions {
  ConstView x;  // [B, T, C]
  View y;       // [B, count, columns]
  std::int64_t stride;
  std::int64_t offset;
};

inline constinit Kernel<GatherPositions> gather_positions_kernel{"gather_positions"};

/// y[b, i, c] = x[b, i * stride + offset, c] for c < columns: the predictions among a model's outputs, for evaluation.
///   x        [B, T, C]  any floating dtype
///   returns  [B, count, columns]  the stream dtype
/// Not differentiable. Throws ArgumentError if a position lies outside T or columns exceeds C.
Tensor gather_positions(const Context& ctx, const Tensor& x, std::int64_t count, std::int64_t stride,
                        std::int64_t offset, std::int64_t columns = 1);

}  // namespace graft
