#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/context.h"
#include "engine/dtype.h"
#include "engine/kernel.h"
#include "engine/step_state.h"
#include "engine/tensor.h"

namespace graft {

struct ClipArgs {
  ConstView gradients;  // [n]
  View partial;         // [clip_blocks(n)] float64 scratch
  StepState* state;
  double max_norm;
};

inline constinit Kernel<ClipArgs> clip_norm{"clip_by_global_norm"};

/// Into how many blocks of consecutive elements the sum of squares is split; a function of the length alone.
[[nodiscard]] constexpr std::int64_t clip_blocks(std::int64_t elements) {
  return std::clamp<std::int64_t>((elements + 8191) / 8192, 1, 1024);
}

/// What the global norm means for the step: the formula both backends share.
GRAFT_HD inline void apply_norm(StepState& state, double squares, double max_norm) {
  const double norm = sqrt(squares);
  state.gradient_norm = norm;
  state.clip_scale = 1;
  if (!(norm <= 1.7976931348623157e308)) {  // infinite, or not a number
    state.skip = 1;
    state.skipped += 1;
    return;
  }
  const double scale = max_norm / (norm + 1e-6);
  if (max_norm > 0 && scale < 1) state.clip_scale = scale;
}

/// Measures the L2 norm over all gradients and leaves on the device what the optimizer applies to each of them:
///   state.gradient_norm = |g|,  state.clip_scale = min(1, max_norm / (|g| + 1e-6)).
///   gradients  [n]  the flat buffer of the parameter store, float32 or float64; not changed
/// max_norm <= 0 only measures: the scale is 1. A norm that is not finite sets state.skip, so that the update is left
/// out, and counts in state.skipped. Throws ArgumentError without a step state.
/// Source: Pascanu et al. 2013, algorithm 1; 1e-6 as in torch.nn.utils.clip_grad_norm_.
void clip_by_global_norm(const Context& ctx, const Tensor& gradients, double max_norm);

}  // namespace graft
