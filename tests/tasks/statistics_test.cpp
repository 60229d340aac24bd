#include "tasks/statistics.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/error.h"
#include "engine/philox.h"

namespace graft {
namespace {

std::vector<double> normals(std::size_t count, std::uint64_t seed) {
  std::vector<double> values(count);
  const Draw draw{seed, RandomDomain::Evaluation, 0, 0};
  for (std::size_t i = 0; i < count; ++i) values[i] = draw.normal(0, static_cast<std::uint32_t>(i));
  return values;
}

TEST_CASE("statistics: means and unbiased deviations by hand") {
  const std::vector<double> scores = {1, 10, 2, 10, 6, 10};  // [3, 2]
  const PositionStatistics s = position_statistics(scores, 3, 2);
  CHECK(s.mean == std::vector<double>{3, 10});
  CHECK(s.standard_deviation[0] == doctest::Approx(std::sqrt(7.0)));
  CHECK(s.standard_deviation[1] == 0);
  CHECK(s.lower[1] == 10);
  CHECK(s.upper[1] == 10);
  CHECK(s.count == std::vector<std::int64_t>{3, 3});
  const ScoreSummary summary = summarize(s);
  CHECK(summary.mean_from_second == 10);
  CHECK(summary.mean_all == 6.5);
  CHECK(summary.last == 10);
  CHECK(summary.pooled == 6.5);
}

TEST_CASE("statistics: an answer is right where all of its points are") {
  const std::vector<double> scores = {1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, std::nan("")};  // [4, 3]
  const auto share = [&](std::vector<std::int64_t> points) { return answer_accuracy(scores, 4, 3, points); };
  CHECK(share({0}) == 0.75);
  CHECK(share({0, 1}) == 0.5);
  CHECK(share({0, 1, 2}) == 0.25);
  CHECK(share({2}) == 0.5);
  CHECK_THROWS_AS(share({3}), ArgumentError);
  CHECK_THROWS_AS(static_cast<void>(answer_accuracy(scores, 5, 3, std::vector<std::int64_t>{0})), ArgumentError);
}

TEST_CASE("statistics: quantiles between order statistics") {
  const std::vector<double> sorted = {1, 2, 4, 8};
  CHECK(sorted_quantile(sorted, 0) == 1);
  CHECK(sorted_quantile(sorted, 1) == 8);
  CHECK(sorted_quantile(sorted, 0.5) == 3);
  CHECK(sorted_quantile(sorted, 0.05) == doctest::Approx(1.15));
  CHECK(sorted_quantile(sorted, 0.95) == doctest::Approx(7.4));
  const double inf = std::numeric_limits<double>::infinity();
  CHECK(sorted_quantile(std::vector<double>{1, inf, inf}, 0.75) == inf);
  CHECK(std::isnan(sorted_quantile({}, 0.5)));
}

TEST_CASE("statistics: the band is that of the resampled means, with one draw for all positions") {
  constexpr std::int64_t kPrompts = 23, kPoints = 3;
  const std::vector<double> scores = normals(kPrompts * kPoints, 3);
  const BootstrapOptions options{.resamples = 50, .lower = 0.1, .upper = 0.8, .seed = 11};
  const PositionStatistics s = position_statistics(scores, kPrompts, kPoints, options);
  for (std::int64_t p = 0; p < kPoints; ++p) {
    std::vector<double> means;
    for (std::uint32_t r = 0; r < 50; ++r) {
      const Draw draw{11, RandomDomain::Bootstrap, 0, r};
      double sum = 0;
      for (std::uint32_t i = 0; i < kPrompts; ++i) {
        sum += scores[static_cast<std::size_t>(draw.below(kPrompts, 0, i) * kPoints + p)];
      }
      means.push_back(sum / kPrompts);
    }
    std::sort(means.begin(), means.end());
    const auto at = static_cast<std::size_t>(p);
    CHECK(s.lower[at] == doctest::Approx(means[4] + 0.9 * (means[5] - means[4])).epsilon(1e-12));
    CHECK(s.upper[at] == doctest::Approx(means[39] + 0.2 * (means[40] - means[39])).epsilon(1e-12));
  }
  std::vector<double> all, from_second;  // of one resample each
  for (std::uint32_t r = 0; r < 50; ++r) {
    const Draw draw{11, RandomDomain::Bootstrap, 0, r};
    double first = 0, rest = 0;
    for (std::uint32_t i = 0; i < kPrompts; ++i) {
      const double* row = &scores[static_cast<std::size_t>(draw.below(kPrompts, 0, i) * kPoints)];
      first += row[0];
      rest += row[1] + row[2];
    }
    all.push_back((first + rest) / (kPrompts * kPoints));
    from_second.push_back(rest / (kPrompts * 2));
  }
  std::sort(all.begin(), all.end());
  std::sort(from_second.begin(), from_second.end());
  CHECK(s.summary_lower.mean_all == doctest::Approx(sorted_quantile(all, 0.1)).epsilon(1e-12));
  CHECK(s.summary_upper.mean_all == doctest::Approx(sorted_quantile(all, 0.8)).epsilon(1e-12));
  CHECK(s.summary_lower.pooled == doctest::Approx(sorted_quantile(all, 0.1)).epsilon(1e-12));
  CHECK(s.summary_lower.mean_from_second == doctest::Approx(sorted_quantile(from_second, 0.1)).epsilon(1e-12));
  CHECK(s.summary_upper.mean_from_second == doctest::Approx(sorted_quantile(from_second, 0.8)).epsilon(1e-12));
  CHECK(s.summary_lower.last == s.lower[2]);
  CHECK(s.summary_upper.last == s.upper[2]);
  BootstrapOptions other = options;
  other.seed = 12;
  CHECK(position_statistics(scores, kPrompts, kPoints, options).lower == s.lower);
  CHECK(position_statistics(scores, kPrompts, kPoints, other).lower != s.lower);
}

TEST_CASE("statistics: the band of many prompts is that of a normal mean") {
  constexpr std::int64_t kPrompts = 1280;
  const PositionStatistics s = position_statistics(normals(kPrompts, 5), kPrompts, 1);
  const double standard_error = s.standard_deviation[0] / std::sqrt(static_cast<double>(kPrompts));
  // A 5 % quantile of 1,000 draws scatters by sqrt(0.05 0.95 / 1000) / density(1.645) = 0.067 standard errors.
  CHECK(std::abs(s.lower[0] - (s.mean[0] - 1.6449 * standard_error)) < 5 * 0.067 * standard_error);
  CHECK(std::abs(s.upper[0] - (s.mean[0] + 1.6449 * standard_error)) < 5 * 0.067 * standard_error);
}

TEST_CASE("statistics: the band covers the true mean nine times out of ten") {
  constexpr std::int64_t kPrompts = 100, kSets = 600;
  // As positions of one table they share resamples but not data, so the sets are independent.
  const std::vector<double> scores = normals(kPrompts * kSets, 8);
  const PositionStatistics s = position_statistics(scores, kPrompts, kSets);
  int covered = 0;
  for (std::size_t p = 0; p < kSets; ++p) covered += s.lower[p] <= 0 && 0 <= s.upper[p] ? 1 : 0;
  // Expected 0.895 (bootstrap of 100 values is a little narrow); standard error sqrt(0.9 0.1 / 600) = 0.012.
  CHECK(std::abs(covered / static_cast<double>(kSets) - 0.895) < 4.5 * 0.0125);
}

TEST_CASE("statistics: points that are not scored leave no trace") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  //                                [4, 3]; the last position is never scored, the middle one once
  const std::vector<double> scores = {1, nan, nan, 3, 5, nan, nan, nan, nan, 5, 7, nan};
  const std::vector<std::uint8_t> scored = {1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0};
  const PositionStatistics s = position_statistics(scores, 4, 3, {}, scored);
  CHECK(s.count == std::vector<std::int64_t>{3, 1, 0});
  CHECK(s.mean[0] == 3);
  CHECK(s.standard_deviation[0] == 2);
  CHECK(s.lower[0] >= 1);
  CHECK(s.upper[0] <= 5);
  CHECK(s.mean[1] == 5);
  CHECK(std::isnan(s.standard_deviation[1]));
  CHECK(s.lower[1] == 5);  // resamples without the one scored prompt say nothing
  CHECK(s.upper[1] == 5);
  CHECK(std::isnan(s.mean[2]));
  CHECK(std::isnan(s.upper[2]));
  const ScoreSummary summary = summarize(s);
  CHECK(summary.pooled == doctest::Approx(14.0 / 4));
  CHECK(summary.mean_all == 4);
  CHECK(summary.mean_from_second == 5);
  CHECK(summary.last == 5);
  CHECK(s.summary_lower.pooled >= 1);
  CHECK(s.summary_upper.pooled <= 5);
  const PositionStatistics none =
      position_statistics(std::vector<double>{1, 2}, 1, 2, {}, std::vector<std::uint8_t>(2));
  CHECK(std::isnan(summarize(none).last));
  CHECK(std::isnan(none.summary_upper.mean_all));
}

TEST_CASE("statistics: a mean over independent positions has a narrower band than each of them") {
  constexpr std::int64_t kPrompts = 400, kPoints = 25;
  const PositionStatistics s = position_statistics(normals(kPrompts * kPoints, 21), kPrompts, kPoints);
  const double whole = s.summary_upper.mean_all - s.summary_lower.mean_all;
  const double expected = 2 * 1.6449 / std::sqrt(static_cast<double>(kPrompts * kPoints));
  CHECK(std::abs(whole / expected - 1) < 0.2);  // a band's width scatters by about 4 %
  CHECK(s.upper[3] - s.lower[3] > 4 * whole);
}

TEST_CASE("statistics: a score that is not finite is seen") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const PositionStatistics s = position_statistics(std::vector<double>{1, nan, inf, 1, 2, 3}, 2, 3);
  CHECK(s.mean[0] == 1);
  CHECK(s.upper[0] == 1);
  CHECK(std::isnan(s.mean[1]));
  CHECK(std::isnan(s.lower[1]));
  CHECK(s.mean[2] == inf);
  CHECK(s.upper[2] == inf);
  CHECK(std::isnan(summarize(s).mean_all));
  CHECK(std::isnan(s.summary_lower.mean_all));
}

TEST_CASE("statistics: one position and one prompt") {
  const PositionStatistics s = position_statistics(std::vector<double>{2}, 1, 1);
  CHECK(s.lower[0] == 2);
  CHECK(std::isnan(s.standard_deviation[0]));
  const ScoreSummary summary = summarize(s);
  CHECK(summary.last == 2);
  CHECK(summary.mean_from_second == 2);  // there is no second one
}

TEST_CASE("statistics: the headline of other values counts positions as the scores do") {
  const std::vector<std::int64_t> count = {1, 0, 3};
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> values = {1, nan, 5};
  CHECK(headline_of(Headline::MeanFromSecond, values, count) == 5);
  CHECK(headline_of(Headline::MeanAll, values, count) == 3);
  CHECK(headline_of(Headline::Pooled, values, count) == 4);
  CHECK(std::isnan(headline_of(Headline::MeanAll, std::vector<double>{1, 1, nan}, count)));
  CHECK(headline_of(Headline::MeanAll, std::vector<double>{1, 1, nan}, count, true) == 1);
  CHECK(std::isnan(headline_of(Headline::MeanAll, values, std::vector<std::int64_t>{0, 0, 0})));
  CHECK_THROWS_AS((void)headline_of(Headline::MeanAll, values, std::vector<std::int64_t>{1}), ArgumentError);
  ScoreSummary summary;
  summary.mean_from_second = 1;
  summary.mean_all = 2;
  summary.pooled = 3;
  CHECK(summary.value(Headline::MeanFromSecond) == 1);
  CHECK(summary.value(Headline::MeanAll) == 2);
  CHECK(summary.value(Headline::Pooled) == 3);
}

TEST_CASE("statistics: wrong sizes are refused") {
  const std::vector<double> scores(6);
  CHECK_THROWS_WITH_AS((void)position_statistics(scores, 2, 2), doctest::Contains("6 scores, expected 2 x 2"),
                       ArgumentError);
  CHECK_THROWS_AS((void)position_statistics({}, 0, 0), ArgumentError);
  CHECK_THROWS_AS((void)position_statistics(scores, 2, 3, {}, std::vector<std::uint8_t>(5)), ArgumentError);
  CHECK_THROWS_AS((void)position_statistics(scores, 2, 3, {.resamples = 0}), ArgumentError);
  CHECK_THROWS_AS((void)position_statistics(scores, 2, 3, {.lower = 0.9, .upper = 0.1}), ArgumentError);
}

TEST_CASE("statistics: without the band when stopped") {
  const std::vector<double> scores = {1, 2, 3, 4};
  int asked = 0;
  const PositionStatistics statistics =
      position_statistics(scores, 2, 2, {.resamples = 100, .stop = [&] { return ++asked == 50; }});
  CHECK(asked == 50);
  CHECK(statistics.mean == std::vector<double>{2, 3});
  CHECK(statistics.lower.empty());
  CHECK(statistics.upper.empty());
}

}  // namespace
}  // namespace graft
