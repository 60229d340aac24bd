#include "tasks/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "engine/philox.h"
#include "engine/require.h"

namespace graft {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::uint32_t kResamplePrompts = 0;  // purpose of the random numbers

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

/// How often each prompt occurs in one resample.
void draw_resample(const BootstrapOptions& options, int resample, std::vector<std::uint32_t>& times) {
  const Draw draw{options.seed, RandomDomain::Bootstrap, 0, static_cast<std::uint32_t>(resample)};
  const auto prompts = static_cast<std::uint32_t>(times.size());
  std::fill(times.begin(), times.end(), 0);
  for (std::uint32_t i = 0; i < prompts; ++i) ++times[draw.below(prompts, kResamplePrompts, i)];
}

/// A mean of the values of positions; those with weight 0 are left out.
double headline_over(Headline headline, std::span<const double> values, std::span<const double> weights) {
  const auto mean_from = [&](std::size_t first) {
    double sum = 0;
    double total = 0;
    for (std::size_t p = first; p < values.size(); ++p) {
      if (weights[p] == 0) continue;
      const double weight = headline == Headline::Pooled ? weights[p] : 1.0;
      sum += weight * values[p];
      total += weight;
    }
    return total > 0 ? std::optional(sum / total) : std::nullopt;
  };
  std::optional<double> mean;
  if (headline == Headline::MeanFromSecond) mean = mean_from(1);
  if (!mean) mean = mean_from(0);
  return mean.value_or(kNaN);
}

ScoreSummary summary_over(std::span<const double> values, std::span<const double> weights) {
  std::size_t last = values.size() - 1;
  while (last > 0 && weights[last] == 0) --last;
  return {headline_over(Headline::MeanFromSecond, values, weights), headline_over(Headline::MeanAll, values, weights),
          weights[last] == 0 ? kNaN : values[last], headline_over(Headline::Pooled, values, weights)};
}

/// The two quantiles of a bootstrap band. NaN has no place in an order, and resamples that happen to miss it say
/// nothing about the others; `known` is false where the number itself is NaN.
std::pair<double, double> band_of(std::vector<double>& resampled, bool known, const BootstrapOptions& options) {
  if (!known || std::any_of(resampled.begin(), resampled.end(), [](double value) { return std::isnan(value); })) {
    return {kNaN, kNaN};
  }
  std::sort(resampled.begin(), resampled.end());
  return {sorted_quantile(resampled, options.lower), sorted_quantile(resampled, options.upper)};
}

constexpr std::array kSummaryNumbers = {&ScoreSummary::mean_from_second, &ScoreSummary::mean_all, &ScoreSummary::last,
                                        &ScoreSummary::pooled};

}  // namespace

double answer_accuracy(std::span<const double> scores, std::int64_t prompts, std::int64_t points,
                       std::span<const std::int64_t> answer_points) {
  require(prompts >= 1 && points >= 1 && scores.size() == static_cast<std::size_t>(prompts * points),
          "statistics: {} scores, expected {} x {}", scores.size(), prompts, points);
  for (const std::int64_t point : answer_points) {
    require(point >= 0 && point < points, "statistics: an answer at point {}, expected one of {} points", point,
            points);
  }
  std::int64_t right = 0;
  for (std::int64_t prompt = 0; prompt < prompts; ++prompt) {
    right += std::all_of(answer_points.begin(), answer_points.end(), [&](std::int64_t point) {
      return scores[static_cast<std::size_t>(prompt * points + point)] == 1;
    });
  }
  return static_cast<double>(right) / static_cast<double>(prompts);
}

double sorted_quantile(std::span<const double> sorted, double q) {
  if (sorted.empty()) return kNaN;
  const double position = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  if (sorted[below] == sorted[above]) return sorted[below];  // two infinities have no difference
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

PositionStatistics position_statistics(std::span<const double> scores, std::int64_t prompts, std::int64_t points,
                                       const BootstrapOptions& options, std::span<const std::uint8_t> scored) {
  require(prompts >= 1 && points >= 1, "position_statistics: {} prompts of {} points, expected at least one of each",
          prompts, points);
  require(scores.size() == index(prompts * points), "position_statistics: {} scores, expected {} x {}", scores.size(),
          prompts, points);
  require(scored.empty() || scored.size() == scores.size(), "position_statistics: {} flags for {} scores",
          scored.size(), scores.size());
  require(options.resamples >= 1, "position_statistics: {} resamples, expected at least 1", options.resamples);
  require(0 <= options.lower && options.lower <= options.upper && options.upper <= 1,
          "position_statistics: quantiles {} and {}, expected 0 <= lower <= upper <= 1", options.lower, options.upper);
  const std::size_t width = index(points);

  // A score that does not count becomes a zero with weight zero, whatever it was.
  std::vector<double> values(scores.begin(), scores.end());
  std::vector<double> weights;
  PositionStatistics result;
  result.count.assign(width, scored.empty() ? prompts : 0);
  if (!scored.empty()) {
    weights.resize(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      weights[i] = scored[i] != 0 ? 1.0 : 0.0;
      if (scored[i] == 0) values[i] = 0;
      result.count[i % width] += scored[i] != 0 ? 1 : 0;
    }
  }

  std::vector<double> sums(width, 0.0);
  for (std::size_t i = 0; i < values.size(); ++i) sums[i % width] += values[i];
  result.mean.resize(width);
  for (std::size_t p = 0; p < width; ++p) {
    result.mean[p] = result.count[p] > 0 ? sums[p] / static_cast<double>(result.count[p]) : kNaN;
  }
  std::vector<double> squares(width, 0.0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!scored.empty() && scored[i] == 0) continue;
    const double deviation = values[i] - result.mean[i % width];
    squares[i % width] += deviation * deviation;
  }
  result.standard_deviation.resize(width);
  for (std::size_t p = 0; p < width; ++p) {
    const std::int64_t n = result.count[p];
    result.standard_deviation[p] = n > 1 ? std::sqrt(squares[p] / static_cast<double>(n - 1)) : kNaN;
  }

  // means[p] gathers the position's mean in each resample; one that has no scored prompt there says nothing.
  std::vector<std::vector<double>> means(width);
  for (auto& list : means) list.reserve(static_cast<std::size_t>(options.resamples));
  std::array<std::vector<double>, kSummaryNumbers.size()> summaries;
  std::vector<std::uint32_t> times(index(prompts));
  std::vector<double> counts(width), resampled(width);
  for (int resample = 0; resample < options.resamples; ++resample) {
    if (options.stop && options.stop()) return result;
    draw_resample(options, resample, times);
    std::fill(sums.begin(), sums.end(), 0.0);
    std::fill(counts.begin(), counts.end(), weights.empty() ? static_cast<double>(prompts) : 0.0);
    for (std::size_t prompt = 0; prompt < times.size(); ++prompt) {
      if (times[prompt] == 0) continue;
      const double weight = times[prompt];
      const double* row = &values[prompt * width];
      for (std::size_t p = 0; p < width; ++p) sums[p] += weight * row[p];
      if (weights.empty()) continue;
      const double* row_weights = &weights[prompt * width];
      for (std::size_t p = 0; p < width; ++p) counts[p] += weight * row_weights[p];
    }
    for (std::size_t p = 0; p < width; ++p) {
      resampled[p] = counts[p] > 0 ? sums[p] / counts[p] : kNaN;
      if (counts[p] > 0) means[p].push_back(resampled[p]);
    }
    const ScoreSummary summary = summary_over(resampled, counts);
    for (std::size_t i = 0; i < summaries.size(); ++i) {
      if (!std::isnan(summary.*kSummaryNumbers[i])) summaries[i].push_back(summary.*kSummaryNumbers[i]);
    }
  }
  result.lower.resize(width);
  result.upper.resize(width);
  for (std::size_t p = 0; p < width; ++p) {
    std::tie(result.lower[p], result.upper[p]) = band_of(means[p], !std::isnan(result.mean[p]), options);
  }
  const ScoreSummary summary = summarize(result);
  for (std::size_t i = 0; i < summaries.size(); ++i) {
    const auto number = kSummaryNumbers[i];
    std::tie(result.summary_lower.*number, result.summary_upper.*number) =
        band_of(summaries[i], !std::isnan(summary.*number), options);
  }
  return result;
}

std::string_view name_of(Headline headline) {
  switch (headline) {
    case Headline::MeanFromSecond:
      return "mean_from_second";
    case Headline::MeanAll:
      return "mean_all";
    case Headline::Pooled:
      return "pooled";
  }
  return "?";
}

std::string_view label_of(Headline headline) {
  switch (headline) {
    case Headline::MeanFromSecond:
      return "mean i>=1";
    case Headline::MeanAll:
      return "mean";
    case Headline::Pooled:
      return "pooled";
  }
  return "?";
}

double ScoreSummary::value(Headline headline) const {
  switch (headline) {
    case Headline::MeanFromSecond:
      return mean_from_second;
    case Headline::MeanAll:
      return mean_all;
    case Headline::Pooled:
      return pooled;
  }
  return kNaN;
}

double headline_of(Headline headline, std::span<const double> values, std::span<const std::int64_t> count,
                   bool skip_nan) {
  require(!values.empty() && values.size() == count.size(), "headline_of: {} values with {} counts", values.size(),
          count.size());
  std::vector<double> weights(count.begin(), count.end());
  for (std::size_t p = 0; p < values.size(); ++p) {
    if (skip_nan && std::isnan(values[p])) weights[p] = 0;
  }
  return headline_over(headline, values, weights);
}

ScoreSummary summarize(const PositionStatistics& statistics) {
  require(!statistics.mean.empty() && statistics.count.size() == statistics.mean.size(),
          "summarize: statistics of {} positions with {} counts", statistics.mean.size(), statistics.count.size());
  const std::vector<double> weights(statistics.count.begin(), statistics.count.end());
  return summary_over(statistics.mean, weights);
}

}  // namespace graft
