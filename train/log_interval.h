#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "train/metrics.h"

namespace graft {

/// What a line of metrics.jsonl says of the steps since the line before. Its size does not grow with their number: a
/// line may be 10^12 steps away, and every checkpoint until then holds it.
class LogInterval {
 public:
  struct Skipped {
    std::int64_t step = 0;
    std::int64_t tensor = kNothingBad;  // MetricsRow::first_bad
  };

  void add(const MetricsRow& row);
  /// Mean of the losses that are finite: one that is not would hide all others. NaN if there are none.
  [[nodiscard]] double mean_loss() const;
  /// The first step whose update was left out.
  [[nodiscard]] const std::optional<Skipped>& first_skipped() const { return first_skipped_; }

  /// For state.json.
  [[nodiscard]] nlohmann::json json() const;
  /// From state.json, `file`, of a checkpoint of `step`; earlier versions kept a list of the steps' rows there. Throws
  /// DataError naming file and field where it cannot be what a run has saved.
  [[nodiscard]] static LogInterval from_json(const nlohmann::json& saved, std::int64_t step,
                                             const std::filesystem::path& file);

 private:
  double loss_sum_ = 0;  // in the order of the steps, from the first one on: a resume adds the same numbers
  std::int64_t finite_ = 0;
  std::optional<Skipped> first_skipped_;
};

}  // namespace graft
