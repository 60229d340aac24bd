#pragma once

#include <cmath>
#include <cstdint>

#include "models/linear.h"
#include "models/mixer.h"

namespace graft {

/// Initialisation of a linear layer inside an attention or MLP branch.
///   into_residual  the layer's output is added to the residual stream; GPT-2 scales those down with depth
/// Source: GPT-2's scheme, 0.02 / sqrt(2 L) with L layers of two branches each, so over the square root of the number
/// of branches; biases start at zero in both schemes.
[[nodiscard]] inline LinearInit block_linear_init(const ModelConfig& config, const BlockPosition& position,
                                                  std::int64_t fan_in, bool into_residual) {
  if (config.init == BlockInit::Default) return {init::uniform_fan_in(fan_in), init::constant(0)};
  if (config.init == BlockInit::Normal) return {init::normal(0.02), init::constant(0)};
  const double depth = into_residual ? std::sqrt(static_cast<double>(position.branches)) : 1.0;
  return {init::normal(0.02 / depth), init::constant(0)};
}

}  // namespace graft
