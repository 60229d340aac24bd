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
  ConstView loss;       // one element of the gradients' dtype, or null
  StepState* state;
  double max_norm;
};

inline constinit Kernel<ClipArgs> clip_norm{"clip_by_global_norm"};

/// Into how many blocks of consecutive elements the sum of squares is split; a function of the length alone.
[[nodiscard]] constexpr std::int64_t clip_blocks(std::int64_t elements) {
  return std::clamp<std::int64_t>((elements + 8191) / 8192, 1, 1024);
}

/// Whether squares, or a sum of them, can be represented in `dtype`: false for infinities, for what is not a number,
/// and in float32 for squares above its range, with which the second moment would be infinite for good.
[[nodiscard]] GRAFT_HD inline bool squares_are_finite(double squares, DType dtype) {
  return squares <= (dtype == DType::F64 ? 1.7976931348623157e308 : 3.4028234663852886e38);
}

[[nodiscard]] GRAFT_HD inline bool loss_is_finite(const ConstView& loss) {
  if (!loss) return true;
  const double value = loss.dtype == DType::F64 ? *loss.as<double>() : static_cast<double>(*loss.as<float>());
  return value - value == 0;
}

/// What the global norm means for the step: the formula both backends share. `first_bad` is kNothingBad, or says why
/// the update must be left out.
GRAFT_HD inline void apply_norm(StepState& state, double squares, double max_norm, std::int64_t first_bad) {
  if (state.skipped_in_row >= kMostSkippedInRow) {  // stands still: everything has been said
    state.skip = 1;
    return;
  }
  const double norm = sqrt(squares);
  state.gradient_norm = norm;
  state.clip_scale = 1;
  state.first_bad = first_bad;
  if (first_bad != kNothingBad) {
    state.skip = 1;
    state.skipped += 1;
    state.skipped_in_row += 1;
    return;
  }
  state.skipped_in_row = 0;
  const double scale = max_norm / (norm + 1e-6);
  if (max_norm > 0 && scale < 1) state.clip_scale = scale;
}

/// Measures the L2 norm over all gradients and leaves on the device what the optimizer applies to each of them:
///   state.gradient_norm = |g|,  state.clip_scale = min(1, max_norm / (|g| + 1e-6)).
///   gradients  [n]  the flat buffer of the parameter store, float32 or float64; not changed
///   loss       one element of the same dtype, or empty; not changed
/// max_norm <= 0 only measures: the scale is 1. A norm or loss that is not finite sets state.skip, so that the update
/// is left out, counts in state.skipped and state.skipped_in_row, and leaves in state.first_bad which gradient comes
/// first in the buffer (where gradients lie about in the order in which backward finishes them). A norm whose square is
/// beyond the dtype's range counts as infinite. After kMostSkippedInRow in a row nothing changes any more.
/// Throws ArgumentError without a step state, and where a dtype is not the context's or the loss not one element.
/// Source: Pascanu et al. 2013, algorithm 1; 1e-6 as in torch.nn.utils.clip_grad_norm_.
void clip_by_global_norm(const Context& ctx, const Tensor& gradients, double max_norm, const Tensor& loss = {});

}  // namespace graft
