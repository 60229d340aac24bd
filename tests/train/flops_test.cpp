#include "train/flops.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "train/experiment.h"

namespace graft::test {
namespace {

/// Points of the study's tasks over training; dimensions do not cost anything.
struct Growth {
  std::int64_t start, end, increment, interval;
};
constexpr Growth kShort{11, 41, 2, 2000};    // linear regression
constexpr Growth kLong{26, 101, 5, 2000};    // the tasks of 101 points
constexpr Growth kOutlier{12, 512, 2, 200};  // many outliers

Experiment experiment_of(const Growth& growth, std::int64_t layers = 2, std::int64_t width = 128) {
  const std::string text = fmt::format(
      "[task]\nname = \"linear_regression\"\ndim = 20\npoints = {}\n"
      "[task.curriculum]\npoints_start = {}\npoints_increment = {}\npoints_interval = {}\n"
      "[model]\npreset = \"transformer\"\nlayers = {}\nwidth = {}\nheads = 8\n",
      growth.end, growth.start, growth.increment, growth.interval, layers, width);
  return Experiment(parse_config(text, "flops.toml"));
}

TEST_CASE("flops: one forward pass by its formula") {
  const Experiment experiment = experiment_of(kShort);
  for (const double t : {2.0, 22.0, 82.0}) {
    const double d = 128;
    const double shell = 2 * t * d * 20 + 2 * t * d;
    const auto tokens = static_cast<std::int64_t>(t);
    CHECK(experiment.model->forward_flops(tokens) == 2 * (24 * t * d * d + 4 * t * t * d) + shell);
    CHECK(experiment.model->forward_flops(tokens, true) == 2 * (24 * t * d * d + 2 * t * (t + 1) * d) + shell);
  }
  const FlopsReport report = count_flops(*experiment.model, *experiment.task, 64, 100);
  CHECK(report.forward_per_sequence == experiment.model->forward_flops(82));
  CHECK(report.train_step == 3 * 64 * experiment.model->forward_flops(82));
  CHECK(report.train_total == 100.0 * 3 * 64 * experiment.model->forward_flops(22));
}

TEST_CASE("flops: training totals of the study's Transformers, to three digits") {
  struct Row {
    Growth growth;
    std::int64_t steps, layers, width;
    double total;
  };
  const Row rows[] = {
      {kShort, 500000, 2, 128, 6.73e15},    {kShort, 500000, 6, 128, 2.01e16},   {kShort, 500000, 12, 256, 1.53e17},
      {kLong, 100000, 2, 128, 3.37e15},     {kLong, 500000, 3, 64, 8.54e15},     {kLong, 500000, 6, 128, 5.64e16},
      {kLong, 500000, 12, 256, 4.04e17},    {kOutlier, 100000, 2, 128, 2.56e16}, {kOutlier, 100000, 6, 128, 7.65e16},
      {kOutlier, 500000, 12, 256, 2.92e18},
  };
  for (const Row& row : rows) {
    CAPTURE(row.total);
    const Experiment experiment = experiment_of(row.growth, row.layers, row.width);
    const double total = count_flops(*experiment.model, *experiment.task, 64, row.steps).train_total;
    CHECK(fmt::format("{:.2e}", total) == fmt::format("{:.2e}", row.total));
  }
}

/// Tokens of the first `steps` steps, stage by stage.
double tokens_seen(const Task& task, std::int64_t steps) {
  double tokens = 0;
  for (std::int64_t step = 0; step < steps;) {
    const std::int64_t end = stage_end(task, step, steps);
    tokens += 2.0 * 64 * static_cast<double>((end - step) * task.points_at(static_cast<std::uint64_t>(step)));
    step = end;
  }
  return tokens;
}

TEST_CASE("flops: tokens that a run sees") {
  struct Row {
    Growth growth;
    std::int64_t steps;
    const char* tokens;
  };
  const Row rows[] = {
      {kShort, 100000, "4.634e+08"},   {kShort, 300000, "1.513e+09"},   {kShort, 500000, "2.563e+09"},
      {kLong, 100000, "1.139e+09"},    {kLong, 300000, "3.725e+09"},    {kLong, 500000, "6.310e+09"},
      {kOutlier, 100000, "4.947e+09"}, {kOutlier, 300000, "1.805e+10"}, {kOutlier, 500000, "3.116e+10"},
  };
  for (const Row& row : rows) {
    const Experiment experiment = experiment_of(row.growth);
    CHECK(fmt::format("{:.3e}", tokens_seen(*experiment.task, row.steps)) == row.tokens);
  }
  const Experiment parity = experiment_of({140, 140, 0, 1});
  CHECK(fmt::format("{:.3e}", tokens_seen(*parity.task, 100000)) == "1.792e+09");
}

TEST_CASE("flops: stages by bisection are those of a walk over all steps") {
  for (const Growth& growth : {Growth{2, 5, 1, 13}, Growth{2, 5, 2, 7}, Growth{5, 5, 0, 1}, Growth{1, 41, 10, 1}}) {
    const Experiment experiment = experiment_of(growth);
    const Task& task = *experiment.task;
    constexpr std::int64_t kEnd = 60;
    for (std::int64_t step = 0; step < kEnd; ++step) {
      std::int64_t expected = step + 1;
      while (expected < kEnd &&
             task.points_at(static_cast<std::uint64_t>(expected)) == task.points_at(static_cast<std::uint64_t>(step))) {
        ++expected;
      }
      CHECK(stage_end(task, step, kEnd) == expected);
    }
  }
}

TEST_CASE("flops: a run of no step costs nothing") {
  const Experiment experiment = experiment_of(kShort);
  CHECK(count_flops(*experiment.model, *experiment.task, 64, 0).train_total == 0);
}

}  // namespace
}  // namespace graft::test
