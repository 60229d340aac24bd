#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

namespace graft {

struct BootstrapOptions {
  int resamples = 1000;
  double lower = 0.05;  // quantiles of the resampled means
  double upper = 0.95;
  std::uint64_t seed = 0;
  std::function<bool()> stop = {};  // asked before every resample: true ends the work, and there is no band
};

/// Which number of a summary stands for an evaluation.
enum class Headline : std::uint8_t { MeanFromSecond, MeanAll, Pooled };

/// "mean_from_second", "mean_all", "pooled": as eval.jsonl has it.
[[nodiscard]] std::string_view name_of(Headline headline);
/// "mean i>=1", "mean", "pooled": as tables have it.
[[nodiscard]] std::string_view label_of(Headline headline);

/// Numbers for a whole evaluation.
struct ScoreSummary {
  double mean_from_second = 0;  // mean over positions i >= 1 of the positions' means (equation 2 of Park et al. 2024);
                                // where none of them is scored, as with one position, mean_all
  double mean_all = 0;          // mean over all positions
  double last = 0;              // the last position at which anything is scored
  double pooled = 0;            // mean over all scored points of all prompts: what outlier tasks report

  [[nodiscard]] double value(Headline headline) const;
};

/// Scores of an evaluation, position by position. NaN stands where a position has too few prompts for a value.
struct PositionStatistics {
  std::vector<double> mean;
  std::vector<double> standard_deviation;     // unbiased: divided by prompts - 1
  std::vector<double> lower, upper;           // bootstrap band of the mean
  std::vector<std::int64_t> count;            // prompts that are scored at the position
  ScoreSummary summary_lower, summary_upper;  // bootstrap band of the numbers for a whole evaluation
};

/// Mean, standard deviation and bootstrap band of every position, and the band of their summary.
///   scores  [prompts, points]
///   scored  [prompts, points], 1 where a score counts; empty: all do
/// Bands: prompts are drawn with replacement `resamples` times, the same draw for all positions, and quantiles of the
/// means are taken with linear interpolation between order statistics. Draws are a pure function of the seed.
/// A NaN score makes its position's values NaN. Throws ArgumentError if sizes do not match.
/// Source: Garg et al. 2022, evaluation (1,000 resamples, 5th and 95th percentile).
[[nodiscard]] PositionStatistics position_statistics(std::span<const double> scores, std::int64_t prompts,
                                                     std::int64_t points, const BootstrapOptions& options = {},
                                                     std::span<const std::uint8_t> scored = {});

/// Means of the positions' means; positions without a scored prompt are left out, and a mean over none is NaN.
[[nodiscard]] ScoreSummary summarize(const PositionStatistics& statistics);

/// The headline of other values [points] at the positions of an evaluation, of which `count` says how many prompts are
/// scored at each; `values` that are NaN at a position are left out there where `skip_nan`. NaN without any.
[[nodiscard]] double headline_of(Headline headline, std::span<const double> values, std::span<const std::int64_t> count,
                                 bool skip_nan = false);

/// The share of prompts whose scores at all of these points are 1.
///   scores  [prompts, points]
/// Throws ArgumentError if sizes do not match or a point lies outside of a prompt.
[[nodiscard]] double answer_accuracy(std::span<const double> scores, std::int64_t prompts, std::int64_t points,
                                     std::span<const std::int64_t> answer_points);

/// The q-quantile of sorted values, linear between order statistics: position q (n - 1).
[[nodiscard]] double sorted_quantile(std::span<const double> sorted, double q);

}  // namespace graft
