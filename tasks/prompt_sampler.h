#pragma once
// Sampling of (x, y) prompts: one law, drawn by the same code on both backends. Free of fmt.

#include <cstdint>

#include "engine/kernel.h"
#include "engine/philox.h"
#include "engine/step_state.h"
#include "engine/tensor.h"
#include "tasks/selection.h"

namespace graft {

/// What a sampler kernel of one law gets. A law is a plain struct:
///
///   int dim                                                    floats of an input
///   GRAFT_HD int parameters() const                            floats that describe a prompt's function
///   GRAFT_HD float parameter(const Draw&, int j) const         one of them
///   GRAFT_HD void inputs4(const Draw&, int block, float*) const  elements 4 block .. 4 block + 3 of x [points, dim]
///   GRAFT_HD float label(const float* parameters, const float* x) const
template <class Law>
struct SamplePrompts {
  Law law;
  Ramp dims;  // inputs at or beyond dims.at(step) are set to zero before labels are computed
  Selection selection;
  const StepState* state;  // device memory
  std::int64_t points;
  View tokens;   // [B, 2 points, stored width] float32, bfloat16 or float64: x, (y, 0, ..., 0), x, ...
  View targets;  // [B, points, 1] float32 or float64
};

/// The draw of example `i` of a batch.
[[nodiscard]] GRAFT_HD inline Draw draw_of(const Selection& selection, const StepState& state, std::int64_t i) {
  if (selection.consecutive) {
    const auto example = static_cast<std::int64_t>(state.step) * selection.batch + selection.first + i;
    return {state.seed, selection.domain, 0, static_cast<std::uint32_t>(example)};
  }
  return {state.seed, selection.domain, state.step, static_cast<std::uint32_t>(selection.first + i)};
}

/// Active dimensions of a batch: evaluation uses all.
[[nodiscard]] GRAFT_HD inline int active_dims(const Selection& selection, const Ramp& dims, const StepState& state,
                                              int dim) {
  if (selection.domain != RandomDomain::Train) return dim;
  const std::int64_t active = dims.at(state.step);
  return active < dim ? static_cast<int>(active) : dim;
}

}  // namespace graft
