#include "train/flops.h"

namespace graft {

std::int64_t stage_end(const Task& task, std::int64_t step, std::int64_t end) {
  const std::int64_t points = task.points_at(static_cast<std::uint64_t>(step));
  if (task.points_at(static_cast<std::uint64_t>(end - 1)) == points) return end;
  // Points never fall, so the change lies between a step with `points` and one with more.
  std::int64_t low = step;
  std::int64_t high = end - 1;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (task.points_at(static_cast<std::uint64_t>(middle)) == points ? low : high) = middle;
  }
  return high;
}

FlopsReport count_flops(const SequenceModel& model, const Task& task, std::int64_t batch, std::int64_t steps,
                        bool causal) {
  const auto forward = [&](std::int64_t points) { return model.forward_flops(task.tokens_at(points), causal); };
  FlopsReport report;
  report.forward_per_sequence = forward(task.final_points());
  report.train_step = 3 * static_cast<double>(batch) * report.forward_per_sequence;
  for (std::int64_t step = 0; step < steps;) {
    const std::int64_t end = stage_end(task, step, steps);
    report.train_total += 3 * static_cast<double>(batch) * static_cast<double>(end - step) *
                          forward(task.points_at(static_cast<std::uint64_t>(step)));
    step = end;
  }
  return report;
}

}  // namespace graft
