#include "tasks/relu_2nn_regression.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/tasks/prompt_checks.h"

namespace graft::test {
namespace {

std::unique_ptr<Task> make(const std::vector<std::string>& overrides = {}) {
  return make_prompt_task("relu_2nn_regression", overrides);
}

TEST_CASE("relu_2nn_regression: the defaults are the study's") {
  const std::unique_ptr<Task> task = make();
  CHECK(task->shape().input_width == 20);
  CHECK(task->shape().max_tokens == 202);
  CHECK(task->points_at(0) == 26);
  CHECK(task->points_at(30000) == 101);
  CHECK(task->dims_at(0) == 5);
  CHECK(task->prompt(0, RandomDomain::Train, 0, 0).truth.size() == 2100);
}

TEST_CASE("relu_2nn_regression: weights are standard normal and E[y^2] = dim") {
  const std::unique_ptr<Task> task = make({"task.curriculum.enabled=false", "task.points=20"});
  Mean first, first_squares, second, second_squares, squares, labels;
  for (std::uint32_t p = 0; p < 2000; ++p) {
    const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, 2, p);
    for (std::size_t j = p % 7; j < 2000; j += 7) {
      const auto weight = static_cast<double>(prompt.truth[j]);
      first.add(weight);
      first_squares.add(weight * weight);
    }
    for (std::size_t j = 2000; j < 2100; ++j) {
      const auto weight = static_cast<double>(prompt.truth[j]);
      second.add(weight);
      second_squares.add(weight * weight);
    }
    double sum = 0;
    double square = 0;
    for (const float y : prompt.ys) {
      sum += static_cast<double>(y) / 20;
      square += static_cast<double>(y) * static_cast<double>(y) / 20;
    }
    labels.add(sum);
    squares.add(square);
  }
  check_mean(first, 0);
  check_mean(first_squares, 1);
  check_mean(second, 0);
  check_mean(second_squares, 1);
  check_mean(labels, 0);
  check_mean(squares, 20);
}

TEST_CASE("relu_2nn_regression: labels are the network's, whatever the number of units") {
  for (const int hidden : {1, 3, 4, 5, 100}) {
    CAPTURE(hidden);
    const std::unique_ptr<Task> task =
        make({"task.dim=7", "task.points=9", "task.curriculum.enabled=false", "task.hidden=" + std::to_string(hidden)});
    const auto units = static_cast<std::size_t>(hidden);
    for (std::uint32_t p = 0; p < 10; ++p) {
      const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Evaluation, 0, p);
      for (std::size_t i = 0; i < 9; ++i) {
        double label = 0;
        double size = 0;
        for (std::size_t h = 0; h < units; ++h) {
          double activation = 0;
          for (std::size_t j = 0; j < 7; ++j) {
            activation += static_cast<double>(prompt.truth[7 * h + j]) * static_cast<double>(prompt.xs[7 * i + j]);
          }
          const double term = std::max(activation, 0.0) * static_cast<double>(prompt.truth[7 * units + h]);
          label += std::sqrt(2.0 / hidden) * term;
          size += std::sqrt(2.0 / hidden) * std::abs(term);
        }
        CHECK(std::abs(static_cast<double>(prompt.ys[i]) - label) <= 1e-5 * (1 + size));
      }
    }
  }
}

TEST_CASE("relu_2nn_regression: inactive dimensions are zero before labels are computed") {
  const std::unique_ptr<Task> task = make({"task.dim=6", "task.points=30", "task.hidden=10",
                                           "task.curriculum.dims_start=2", "task.curriculum.dims_interval=10"});
  const SampledPrompts drawn = sample_prompts_of(*task, {RandomDomain::Train, 400, 0, false}, 10, 30);
  Mean squares;
  for (std::size_t p = 0; p < 400; ++p) {
    double sum = 0;
    for (std::size_t i = 0; i < 30; ++i) sum += drawn.targets[p * 30 + i] * drawn.targets[p * 30 + i] / 30;
    squares.add(sum);
    CHECK(drawn.tokens[p * 60 * 8 + 2] != 0);
    CHECK(drawn.tokens[p * 60 * 8 + 3] == 0);
  }
  check_mean(squares, 3);  // 3 active dimensions
}

TEST_CASE("relu_2nn_regression: batches are the host's prompts") {
  check_prompt_batches(*make({"task.dim=5", "task.points=7", "task.hidden=6", "task.curriculum.enabled=false"}));
}

TEST_CASE("relu_2nn_regression: networks beyond a GPU's shared memory are refused") {
  check_refused("relu_2nn_regression", {"task.hidden=800"}, {"task.hidden", "16800", "16384"});
  check_refused("relu_2nn_regression", {"task.hidden=0"}, {"task.hidden"});
  CHECK_NOTHROW(static_cast<void>(make({"task.hidden=780"})));
}

TEST_CASE("relu_2nn_regression: CUDA matches CPU") {
  if (skip_cuda()) return;
  for (const char* dim : {"task.dim=3", "task.dim=20"}) {
    for (const char* hidden : {"task.hidden=5", "task.hidden=100", "task.hidden=780"}) {
      check_cuda_prompts(*make({dim, hidden, "task.points=101", "task.curriculum.enabled=false"}), 1e-3);
    }
  }
}

}  // namespace
}  // namespace graft::test
