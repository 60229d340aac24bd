#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace graft {

struct RunConfig;

/// When an evaluation decides a run, so that it ends before train.steps: the mean of its mean scores at the positions
/// first..last, both included, is at least `above`, or at most `below`. Positions that nothing was scored at are left
/// out.
struct StopRule {
  std::optional<double> above, below;  // one of them, or none: the run goes on to its last step
  std::int64_t first = 0;
  std::optional<std::int64_t> last;  // empty: the last position

  /// The rule of eval.stop_above, eval.stop_below, eval.stop_from and eval.stop_to.
  [[nodiscard]] static StopRule of(const RunConfig& config);
  [[nodiscard]] bool given() const { return above.has_value() || below.has_value(); }
  /// What is compared: the mean over the range, NaN if nothing was scored there. `means` are an evaluation's scores by
  /// position.
  [[nodiscard]] double value(const std::vector<double>& means) const;
  [[nodiscard]] bool decided(const std::vector<double>& means) const;
  /// "mean over positions 40..139 at least 0.95".
  [[nodiscard]] std::string str() const;
};

}  // namespace graft
