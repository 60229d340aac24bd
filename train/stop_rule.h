#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace graft {

struct RunConfig;

/// When an evaluation decides a run, so that it ends before train.steps: a value is at least `above`, or at most
/// `below`. The value is the mean of the evaluation's mean scores at the positions first..last, both included, without
/// those that nothing was scored at; in tasks with answers (Task::answer_points()), unless positions are named, its
/// accuracy.
struct StopRule {
  std::optional<double> above, below;  // one of them, or none: the run goes on to its last step
  std::int64_t first = 0;
  std::optional<std::int64_t> last = {};  // empty: the last position
  bool answers = false;                   // the accuracy, not a mean over positions

  /// The rule of eval.stop_above, eval.stop_below, eval.stop_from and eval.stop_to.
  [[nodiscard]] static StopRule of(const RunConfig& config);
  [[nodiscard]] bool given() const { return above.has_value() || below.has_value(); }
  /// What is compared; NaN if nothing was scored there. `means` are an evaluation's scores by position, `accuracy` its
  /// share of prompts answered, if it has one.
  [[nodiscard]] double value(const std::vector<double>& means, std::optional<double> accuracy = {}) const;
  [[nodiscard]] bool decided(const std::vector<double>& means, std::optional<double> accuracy = {}) const;
  /// "mean over positions 40..139 at least 0.95", "accuracy at least 0.95".
  [[nodiscard]] std::string str() const;
};

}  // namespace graft
