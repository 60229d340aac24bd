#pragma once
// Sampling of (x, y) prompts: one law, drawn by the same code on both backends. Free of fmt.

#include <cstdint>

#include "engine/kernel.h"
#include "engine/philox.h"
#include "engine/step_state.h"
#include "engine/tensor.h"
#include "tasks/selection.h"

namespace graft {

/// What a law may have besides (see SamplePrompts):
///
///   GRAFT_HD void settle(const Draw&, int active, float* parameters) const
///
/// does what has to know all parameters, or the number of active dimensions. One thread calls it after they are drawn.
template <class Law>
concept SettlesParameters =
    requires(const Law& law, const Draw& draw, float* parameters) { law.settle(draw, 0, parameters); };

/// A law some of whose points are outliers: both tokens are something else, and the point is not scored. Outliers keep
/// all their dimensions while others have only the active ones.
///
///   Outlier                                          what the elements of an outlier have in common
///   GRAFT_HD bool is_outlier(const Draw&, int i) const
///   GRAFT_HD Outlier outlier(const Draw&, int i) const
///   GRAFT_HD float outlier_x(const float* parameters, const Outlier&, int j) const   element j of its x-token
///   GRAFT_HD float outlier_y(const float* parameters, const Outlier&, int j) const   element j of its y-token
template <class Law>
concept HasOutliers = requires { typename Law::Outlier; };

/// What a sampler kernel of one law gets. A law is a plain struct:
///
///   int dim                                                    floats of an input
///   GRAFT_HD int parameters() const                            floats that describe a prompt's function
///   GRAFT_HD float parameter(const Draw&, int j) const         one of them
///   GRAFT_HD void inputs4(const Draw&, int block, float*) const  elements 4 block .. 4 block + 3 of x [points, dim]
///   GRAFT_HD float label(const float* parameters, const float* x) const
///
/// and it may be one that SettlesParameters or HasOutliers.
template <class Law>
struct SamplePrompts {
  Law law;
  Ramp dims;  // inputs at or beyond dims.at(step) are set to zero before labels are computed
  Selection selection;
  const StepState* state;  // device memory
  std::int64_t points;
  View tokens;   // [B, 2 points, stored width] float32, bfloat16 or float64: x, (y, 0, ..., 0), x, ...
  View targets;  // [B, points, 1] float32 or float64; of an outlier the first element of its y-token
  View mask;     // [B, points] uint8, 1 = scored; null unless the law HasOutliers
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
