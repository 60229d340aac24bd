#pragma once
// What holds for both tasks with outliers.

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/point_scores.h"
#include "tests/tasks/prompt_checks.h"

namespace graft::test {

/// Clean points are linear regression with E[y^2] = 20, and there are as many as `share` says, at each position alike.
inline void check_clean_points(const Task& task, double share) {
  Mean squares, clean, first, neighbours;
  for (std::uint32_t p = 0; p < 1500; ++p) {
    const Prompt prompt = task.prompt(kPromptSeed, RandomDomain::Train, 4, p);
    double sum = 0;
    double count = 0;
    for (std::size_t i = 0; i < prompt.ys.size(); ++i) {
      clean.add(prompt.scored_points[i]);
      if (i > 0) neighbours.add(prompt.scored_points[i] * prompt.scored_points[i - 1]);
      if (prompt.scored_points[i] == 0) continue;
      double label = 0;
      for (std::size_t j = 0; j < 20; ++j) {
        label += static_cast<double>(prompt.xs[20 * i + j]) * static_cast<double>(prompt.truth[j]);
      }
      if (std::abs(label - static_cast<double>(prompt.ys[i])) > 1e-4) FAIL_CHECK("point ", i, " is not <w, x>");
      sum += label * label;
      count += 1;
    }
    first.add(prompt.scored_points[0]);
    if (count > 0) squares.add(sum / count);  // given w, the points of a prompt have mean |w|^2, however many
  }
  check_mean(squares, 20);
  check_mean(clean, share);
  check_mean(first, share);
  check_mean(neighbours, share * share);
}

/// no_outliers has the same w and x with every point clean; fixed_mask has `clean` clean points, the 49th and 50th at
/// `at49` and `at50`, counted from 0, and the same mask in every prompt.
inline void check_suites(const Task& task, std::size_t clean, std::size_t at49, std::size_t at50) {
  CHECK(task.suites() == std::vector<std::string>{"no_outliers", "fixed_mask"});
  CHECK_THROWS_WITH_AS(static_cast<void>(task.suite("nonesuch")), doctest::Contains("no_outliers, fixed_mask"),
                       ArgumentError);
  const std::unique_ptr<Task> plain = task.suite("no_outliers");
  const std::unique_ptr<Task> fixed = task.suite("fixed_mask");
  CHECK(plain->final_points() == task.final_points());
  CHECK(plain->description() != task.description());
  CHECK(fixed->description() != task.description());
  const auto points = static_cast<std::size_t>(task.final_points());
  for (std::uint32_t p = 0; p < 20; ++p) {
    const Prompt standard = task.prompt(kPromptSeed, RandomDomain::Evaluation, 0, p);
    const Prompt prompt = plain->prompt(kPromptSeed, RandomDomain::Evaluation, 0, p);
    CHECK(prompt.truth == standard.truth);
    CHECK(prompt.scored_points == std::vector<std::uint8_t>(points, 1));
    for (std::size_t i = 0; i < points; ++i) {
      if (standard.scored_points[i] != 0) CHECK(prompt.ys[i] == standard.ys[i]);
      for (std::size_t j = 1; j < 20; ++j) CHECK(prompt.y_vectors[20 * i + j] == 0);
    }
    const Prompt laid_out = fixed->prompt(kPromptSeed, RandomDomain::Evaluation, 0, p);
    std::vector<std::size_t> positions;
    for (std::size_t i = 0; i < points; ++i) {
      if (laid_out.scored_points[i] == 0) continue;
      positions.push_back(i);
      CHECK(laid_out.ys[i] == prompt.ys[i]);
    }
    REQUIRE(positions.size() == clean);
    CHECK(positions[49] == at49);
    CHECK(positions[50] == at50);
  }
  // on the device as well
  const SampledPrompts drawn =
      sample_prompts_of(*fixed, {RandomDomain::Evaluation, 6, 0, true}, 0, task.final_points());
  CHECK(drawn == batch_of(*fixed, RandomDomain::Evaluation, 0, 0, 6));
}

/// The loss is the mean over the clean points of all prompts, however they are spread; scores mark the others.
inline void check_pooling(const Task& task) {
  TestDevice device(Backend::Cpu, Precision::Fp64);
  StepState state;
  state.seed = kPromptSeed;
  const DeviceState device_state(device, state);
  const Batch batch = task.sample(device.ctx(), {RandomDomain::Train, 8, 0, false}, task.final_points());
  const auto points = static_cast<std::size_t>(task.final_points());
  std::vector<double> outputs(8 * 2 * points * 8, 1e6);  // only column 0 of x-tokens may be read
  for (std::size_t i = 0; i < 8 * points; ++i) outputs[2 * i * 8] = 0.25 * static_cast<double>(i % 7);
  const Tensor predictions = device.tensor({8, task.final_points() * 2, 8}, DType::F64, outputs);
  const std::vector<double> targets = device.values(batch.targets);
  const std::vector<std::byte> mask = device.bytes(batch.mask);
  double sum = 0;
  double clean = 0;
  std::vector<double> expected;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const double error = outputs[2 * i * 8] - targets[i];
    expected.push_back(mask[i] == std::byte{0} ? kNotScored : error * error);
    if (mask[i] == std::byte{0}) continue;
    sum += error * error;
    clean += 1;
  }
  REQUIRE(clean > 0);
  REQUIRE(clean < static_cast<double>(targets.size()));
  CHECK(device.values(task.loss(device.ctx(), predictions, batch)).at(0) ==
        doctest::Approx(sum / clean).epsilon(1e-12));
  CHECK(device.values(task.scores(device.ctx(), predictions, batch)) == expected);
}

}  // namespace graft::test
