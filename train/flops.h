#pragma once

#include <cstdint>

#include "models/sequence_model.h"
#include "tasks/task.h"

namespace graft {

/// Floating-point operations of a run: a multiply-add is two, a training step three forward passes (backward is two),
/// recomputation is not counted; attention is counted dense, or causally where it says so.
struct FlopsReport {
  double forward_per_sequence = 0;  // at the final number of points
  double train_step = 0;            // likewise
  double train_total = 0;           // over the curriculum's true lengths
};

[[nodiscard]] FlopsReport count_flops(const SequenceModel& model, const Task& task, std::int64_t batch,
                                      std::int64_t steps, bool causal = false);

/// The first step at or after `step` whose number of points differs from the one at `step`; `end` if there is none.
[[nodiscard]] std::int64_t stage_end(const Task& task, std::int64_t step, std::int64_t end);

}  // namespace graft
