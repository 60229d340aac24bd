#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include "models/linear.h"
#include "models/mixer.h"

namespace graft {

/// A linear layer without bias.
[[nodiscard]] inline LinearInit without_bias(Initializer weight) { return {std::move(weight), {}}; }

/// ln of a step size drawn from exp(U(ln 1e-3, ln 0.1)): where state-space blocks of both studies start.
[[nodiscard]] inline double log_step_size(const Draw& draw, std::int64_t index) {
  const auto unit = static_cast<double>(draw.uniform(0, static_cast<std::uint32_t>(index)));
  return std::log(1e-3) + unit * (std::log(0.1) - std::log(1e-3));
}

/// The projection of a Mamba-like block into the residual stream: uniform on +-1/sqrt(fan_in), divided by sqrt(layers).
[[nodiscard]] inline LinearInit ssm_output_init(std::int64_t fan_in, const BlockPosition& position) {
  return without_bias(
      init::uniform(1 / std::sqrt(static_cast<double>(fan_in)) / std::sqrt(static_cast<double>(position.layers))));
}

}  // namespace graft
