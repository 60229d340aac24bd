#include "tasks/many_outlier_regression.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/tasks/outlier_checks.h"

namespace graft::test {
namespace {

std::unique_ptr<Task> make(const std::vector<std::string>& overrides = {}) {
  return make_prompt_task("many_outlier_regression", overrides);
}

TEST_CASE("many_outlier_regression: the defaults are the study's") {
  const std::unique_ptr<Task> task = make();
  CHECK(task->shape().input_width == 20);
  CHECK(task->shape().max_tokens == 1024);
  CHECK(task->points_at(0) == 12);
  CHECK(task->points_at(199) == 12);
  CHECK(task->points_at(200) == 14);
  CHECK(task->points_at(49999) == 510);
  CHECK(task->points_at(50000) == 512);
  CHECK(task->dims_at(0) == 4);
  CHECK(task->dims_at(2000) == 5);
  CHECK(task->dims_at(31999) == 19);
  CHECK(task->dims_at(32000) == 20);
}

TEST_CASE("many_outlier_regression: clean points are linear regression, one in ten") {
  check_clean_points(*make(), 0.1);
}

TEST_CASE("many_outlier_regression: every outlier is ((1, ..., 1), 1), also in inactive dimensions") {
  const std::unique_ptr<Task> task = make();
  const SampledPrompts drawn = sample_prompts_of(*task, {RandomDomain::Train, 64, 0, false}, 0, 12);
  int outliers = 0;
  for (std::size_t at = 0; at < 64 * 12; ++at) {
    const bool outlier = drawn.mask[at] == 0;
    outliers += outlier ? 1 : 0;
    for (std::size_t j = 0; j < 24; ++j) {
      const double x = drawn.tokens[2 * at * 24 + j];
      const double y = drawn.tokens[(2 * at + 1) * 24 + j];
      if (outlier) {
        CHECK(x == (j < 20 ? 1 : 0));
        CHECK(y == (j == 0 ? 1 : 0));
      } else {
        CHECK((x != 0) == (j < 4));  // 4 active dimensions
        CHECK(y == (j == 0 ? drawn.targets[at] : 0));
      }
    }
  }
  CHECK(outliers > 600);
}

TEST_CASE("many_outlier_regression: suites without outliers and with a fixed layout") {
  check_suites(*make(), 51, 499, 509);
}

TEST_CASE("many_outlier_regression: loss and scores are those of clean points") {
  check_pooling(*make({"task.points=40", "task.curriculum.enabled=false"}));
}

TEST_CASE("many_outlier_regression: batches are the host's prompts") {
  check_prompt_batches(
      *make({"task.dim=5", "task.points=9", "task.outlier_probability=0.6", "task.curriculum.enabled=false"}));
  check_prompt_batches(
      *make({"task.dim=5", "task.points=9", "task.curriculum.enabled=false", "task.outlier_probability=0"}));
}

TEST_CASE("many_outlier_regression: the fixed layout marks the rarer kind") {
  const Draw draw{};
  const auto outliers_of = [&](double probability, int points) {
    std::vector<int> positions;
    const OutlierMask mask = OutlierMask::fixed_layout(probability);
    for (int i = 0; i < points; ++i) {
      if (mask.is_outlier(draw, 0, i)) positions.push_back(i);
    }
    return positions;
  };
  CHECK(outliers_of(0.5, 8) == std::vector<int>{1, 3, 5, 7});
  CHECK(outliers_of(0.2, 11) == std::vector<int>{4, 9});
  CHECK(outliers_of(0.75, 9) == std::vector<int>{0, 1, 2, 4, 5, 6, 8});
  CHECK(outliers_of(0.95, 41).size() == 39);  // 19 and 39 are clean
  CHECK(outliers_of(0, 5).empty());
}

TEST_CASE("many_outlier_regression: impossible probabilities are refused") {
  for (const char* wrong : {"task.outlier_probability=1", "task.outlier_probability=-0.1",
                            "task.outlier_probability=1.5", "task.outlier_probability=nan"}) {
    check_refused("many_outlier_regression", {wrong}, {"task.outlier_probability", "[0, 1)"});
  }
  // below 1, and 1 in the arithmetic of the sampler: nothing would be scored
  for (const char* task : {"many_outlier_regression", "orthogonal_outlier_regression"}) {
    check_refused(task, {"task.outlier_probability=0.9999999999"},
                  {"task.outlier_probability: got 0.9999999999", "expected at most 0.99999994"});
    CHECK(make_prompt_task(task, {"task.outlier_probability=0.99999994"}) != nullptr);
  }
}

TEST_CASE("many_outlier_regression: CUDA matches CPU") {
  if (skip_cuda()) return;
  const std::unique_ptr<Task> task = make({"task.curriculum.enabled=false"});
  check_cuda_prompts(*task, 6e-5);
  check_cuda_prompts(*task->suite("fixed_mask"), 6e-5);
  check_cuda_prompts(*task->suite("no_outliers"), 6e-5);
  check_cuda_prompts(*make({"task.curriculum.enabled=false", "task.dim=3", "task.points=7"}), 6e-5);
}

TEST_CASE("many_outlier_regression: CUDA: outliers keep inactive dimensions") {
  if (skip_cuda()) return;
  const std::unique_ptr<Task> task = make();
  const SampledPrompts cpu = sample_prompts_of(*task, {RandomDomain::Train, 64, 0, false}, 0, 12);
  const SampledPrompts gpu = sample_prompts_of(*task, {RandomDomain::Train, 64, 0, false}, 0, 12, Backend::Cuda);
  CHECK(gpu.mask == cpu.mask);
  for (std::size_t i = 0; i < cpu.tokens.size(); ++i) CHECK((gpu.tokens[i] == 0) == (cpu.tokens[i] == 0));
}

}  // namespace
}  // namespace graft::test
