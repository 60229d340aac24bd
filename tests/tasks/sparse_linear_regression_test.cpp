#include "tasks/sparse_linear_regression.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/tasks/prompt_checks.h"

namespace graft::test {
namespace {

std::unique_ptr<Task> make(const std::vector<std::string>& overrides = {}) {
  return make_prompt_task("sparse_linear_regression", overrides);
}

TEST_CASE("sparse_linear_regression: the defaults are the study's") {
  const std::unique_ptr<Task> task = make();
  CHECK(task->shape().input_width == 20);
  CHECK(task->shape().max_tokens == 202);
  CHECK(task->points_at(0) == 26);
  CHECK(task->points_at(2000) == 31);
  CHECK(task->points_at(29999) == 96);
  CHECK(task->points_at(30000) == 101);
  CHECK(task->dims_at(0) == 5);
  CHECK(task->dims_at(30000) == 20);
}

TEST_CASE("sparse_linear_regression: exactly k weights, any subset equally often, E[y^2] = k") {
  const std::unique_ptr<Task> task = make({"task.points=40", "task.curriculum.points_end=40"});
  constexpr std::uint32_t kPrompts = 6000;
  Mean squares;  // of a prompt: they share w, so prompts are the independent values
  std::array<Mean, 20> kept;
  Mean both;  // coordinates 3 and 17
  for (std::uint32_t p = 0; p < kPrompts; ++p) {
    const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, 7, p);
    int weights = 0;
    for (std::size_t j = 0; j < 20; ++j) {
      if (prompt.truth[j] != 0) ++weights;
      kept[j].add(prompt.truth[j] != 0 ? 1 : 0);
    }
    REQUIRE(weights == 3);
    both.add(prompt.truth[3] != 0 && prompt.truth[17] != 0 ? 1 : 0);
    double sum = 0;
    for (const float y : prompt.ys) sum += static_cast<double>(y) * static_cast<double>(y);
    squares.add(sum / static_cast<double>(prompt.ys.size()));
  }
  check_mean(squares, 3);
  for (const Mean& share : kept) check_mean(share, 3.0 / 20);
  check_mean(both, 3.0 / 20 * 2 / 19);
}

TEST_CASE("sparse_linear_regression: labels are <w, x>") {
  const std::unique_ptr<Task> task = make({"task.dim=7", "task.points=9", "task.curriculum.enabled=false"});
  for (std::uint32_t p = 0; p < 20; ++p) {
    const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Evaluation, 0, p);
    for (std::size_t i = 0; i < 9; ++i) {
      double label = 0;
      for (std::size_t j = 0; j < 7; ++j) {
        label += static_cast<double>(prompt.xs[7 * i + j]) * static_cast<double>(prompt.truth[j]);
      }
      CHECK(static_cast<double>(prompt.ys[i]) == doctest::Approx(label).epsilon(1e-5));
    }
  }
}

TEST_CASE("sparse_linear_regression: weights are kept among the active dimensions") {
  // With as many weights as active dimensions all of them count: y = <w, x> needs every active x.
  const std::unique_ptr<Task> task =
      make({"task.dim=6", "task.sparsity=2", "task.points=40", "task.curriculum.dims_start=2",
            "task.curriculum.dims_interval=10", "task.curriculum.points_end=40"});
  for (const auto& [step, active] : {std::pair{0, 2}, {10, 3}, {30, 5}, {100, 6}}) {
    CAPTURE(step);
    const SampledPrompts drawn =
        sample_prompts_of(*task, {RandomDomain::Train, 50, 0, false}, static_cast<std::uint64_t>(step), 40);
    Mean squares;
    for (std::size_t p = 0; p < 50; ++p) {
      double sum = 0;
      for (std::size_t i = 0; i < 40; ++i) {
        const std::size_t at = p * 40 + i;
        sum += drawn.targets[at] * drawn.targets[at] / 40;
        for (std::size_t j = 0; j < 8; ++j) {
          CHECK((drawn.tokens[2 * at * 8 + j] != 0) == (static_cast<int>(j) < active));
        }
      }
      CHECK(sum > 0);  // no prompt lost its weights to inactive dimensions
      squares.add(sum);
    }
    check_mean(squares, 2);
  }
}

TEST_CASE("sparse_linear_regression: batches are the host's prompts") {
  check_prompt_batches(*make({"task.dim=5", "task.points=7", "task.curriculum.enabled=false"}));
  check_prompt_batches(*make({"task.dim=3", "task.points=2", "task.sparsity=3", "task.curriculum.enabled=false"}));
}

TEST_CASE("sparse_linear_regression: more weights than dimensions are refused") {
  check_refused("sparse_linear_regression", {"task.sparsity=21"}, {"task.sparsity", "got 21", "task.dim = 20"});
  check_refused("sparse_linear_regression", {"task.sparsity=6"}, {"task.sparsity", "curriculum starts with"});
  check_refused("sparse_linear_regression", {"task.sparsity=0"}, {"task.sparsity"});
  CHECK_NOTHROW(static_cast<void>(make({"task.sparsity=20", "task.curriculum.enabled=false"})));
}

TEST_CASE("sparse_linear_regression: what generated a prompt is told as its few terms") {
  const std::unique_ptr<Task> task = make();
  Prompt prompt;
  prompt.truth = {0, 0.5F, 0, -1.25F};
  CHECK(task->truth_text(prompt) == "y = +0.500 x[1] -1.250 x[3]");
}

TEST_CASE("sparse_linear_regression: CUDA matches CPU") {
  if (skip_cuda()) return;
  for (const char* dim : {"task.dim=3", "task.dim=20", "task.dim=33"}) {
    check_cuda_prompts(*make({dim, "task.points=101", "task.curriculum.enabled=false"}), 4e-5);
  }
}

}  // namespace
}  // namespace graft::test
