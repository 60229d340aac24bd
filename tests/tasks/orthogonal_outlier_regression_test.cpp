#include "tasks/orthogonal_outlier_regression.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/tasks/outlier_checks.h"

namespace graft::test {
namespace {

std::unique_ptr<Task> make(const std::vector<std::string>& overrides = {}) {
  return make_prompt_task("orthogonal_outlier_regression", overrides);
}

double dot(const float* a, const float* b, std::size_t n) {
  double sum = 0;
  for (std::size_t j = 0; j < n; ++j) sum += static_cast<double>(a[j]) * static_cast<double>(b[j]);
  return sum;
}
double norm(const float* a, std::size_t n) { return std::sqrt(dot(a, a, n)); }

TEST_CASE("orthogonal_outlier_regression: the defaults are the study's") {
  const std::unique_ptr<Task> task = make();
  CHECK(task->shape().input_width == 20);
  CHECK(task->shape().max_tokens == 202);
  CHECK(task->points_at(0) == 26);
  CHECK(task->points_at(30000) == 101);
  CHECK(task->dims_at(0) == 5);
}

TEST_CASE("orthogonal_outlier_regression: clean points are linear regression, one in two") {
  check_clean_points(*make(), 0.5);
  check_clean_points(*make({"task.variant=code"}), 0.5);
}

TEST_CASE("orthogonal_outlier_regression: outliers lie in a plane orthogonal to the prompt's weights") {
  const std::unique_ptr<Task> task = make();
  for (std::uint32_t p = 0; p < 200; ++p) {
    const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, 0, p);
    REQUIRE(prompt.truth.size() == 60);
    const float* w = prompt.truth.data();
    const float* u = w + 20;
    const float* v = w + 40;
    CHECK(std::abs(dot(w, u, 20)) < 1e-5 * norm(w, 20) * norm(u, 20));
    CHECK(std::abs(dot(w, v, 20)) < 1e-5 * norm(w, 20) * norm(v, 20));
    const float* previous = nullptr;
    for (std::size_t i = 0; i < prompt.ys.size(); ++i) {
      if (prompt.scored_points[i] != 0) continue;
      const float* x = &prompt.xs[20 * i];
      for (const float* vector : {x, static_cast<const float*>(&prompt.y_vectors[20 * i])}) {
        CHECK(std::abs(dot(w, vector, 20)) < 1e-5 * norm(w, 20) * norm(vector, 20));
        // its distance from the plane of u and v: |vector|^2 minus the squares of its parts along u and v's rest
        const double uu = dot(u, u, 20), uv = dot(u, v, 20), vv = dot(v, v, 20);
        const double a = dot(u, vector, 20), b = dot(v, vector, 20);
        const double in_plane = (a * a * vv - 2 * a * b * uv + b * b * uu) / (uu * vv - uv * uv);
        CHECK(std::abs(dot(vector, vector, 20) - in_plane) < 1e-4 * dot(vector, vector, 20));
      }
      CHECK(prompt.ys[i] == prompt.y_vectors[20 * i]);
      if (previous != nullptr) CHECK_FALSE(std::equal(x, x + 20, previous));  // each has its own coefficients
      previous = x;
    }
  }
}

/// Median and 99th percentile of outliers' sizes against `median` and `high`, both known to two or three digits. The
/// standard error of a quantile is sqrt(q (1 - q) / n) over the density there, which is taken from the sample.
void check_sizes(std::vector<double> sizes, double median, double high) {
  std::sort(sizes.begin(), sizes.end());
  const auto n = static_cast<double>(sizes.size());
  const auto quantile = [&](double q) { return sizes[static_cast<std::size_t>(q * (n - 1))]; };
  const auto check = [&](double q, double step, double expected, double digits) {
    const double density = 2 * step / (quantile(q + step) - quantile(q - step));
    const double standard_error = std::sqrt(q * (1 - q) / n) / density;
    CAPTURE(quantile(q));
    CAPTURE(standard_error);
    CHECK(std::abs(quantile(q) - expected) < 4 * standard_error + digits);
  };
  check(0.5, 0.02, median, 0.05);
  check(0.99, 0.003, high, 0.5);
}

TEST_CASE("orthogonal_outlier_regression: sizes of outliers") {
  SUBCASE("paper") {
    const std::unique_ptr<Task> task = make();
    std::vector<double> xs, ys;
    for (std::uint32_t p = 0; p < 1500; ++p) {
      const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, 0, p);
      for (std::size_t i = 0; i < prompt.ys.size(); ++i) {
        if (prompt.scored_points[i] != 0) continue;
        xs.push_back(norm(&prompt.xs[20 * i], 20));
        ys.push_back(norm(&prompt.y_vectors[20 * i], 20));
      }
    }
    check_sizes(xs, 3.6, 30);
    check_sizes(ys, 3.6, 30);
  }
  SUBCASE("code") {
    const std::unique_ptr<Task> task = make({"task.variant=code", "task.points=1", "task.curriculum.enabled=false"});
    std::vector<double> xs, ys;
    for (std::uint32_t p = 0; p < 40000; ++p) {
      const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, 0, p);
      REQUIRE(prompt.truth.size() == 140);
      xs.push_back(norm(&prompt.truth[20], 20));
      ys.push_back(norm(&prompt.truth[80], 20));
    }
    check_sizes(xs, 4.1, 21.6);
    check_sizes(ys, 4.1, 21.6);
  }
}

TEST_CASE("orthogonal_outlier_regression: the code's outliers are one pair a prompt, of unrelated planes") {
  const std::unique_ptr<Task> task = make({"task.variant=code"});
  double along_weights = 0;
  for (std::uint32_t p = 0; p < 100; ++p) {
    const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, 0, p);
    const float* x = &prompt.truth[20];
    const float* x_normal = &prompt.truth[40];
    const float* x_other = &prompt.truth[60];
    const float* y = &prompt.truth[80];
    const float* y_normal = &prompt.truth[100];
    for (std::size_t i = 0; i < prompt.ys.size(); ++i) {
      if (prompt.scored_points[i] != 0) continue;
      CHECK(std::equal(x, x + 20, &prompt.xs[20 * i]));
      CHECK(std::equal(y, y + 20, &prompt.y_vectors[20 * i]));
    }
    CHECK(std::abs(dot(x, x_normal, 20)) < 1e-5 * norm(x, 20) * norm(x_normal, 20));
    CHECK(std::abs(dot(x_other, x_normal, 20)) < 1e-5 * norm(x_other, 20) * norm(x_normal, 20));
    CHECK(std::abs(dot(y, y_normal, 20)) < 1e-5 * norm(y, 20) * norm(y_normal, 20));
    along_weights = std::max(along_weights,
                             std::abs(dot(prompt.truth.data(), x, 20)) / norm(prompt.truth.data(), 20) / norm(x, 20));
  }
  CHECK(along_weights > 0.3);  // not orthogonal to the prompt's own weights
}

TEST_CASE("orthogonal_outlier_regression: outliers keep inactive dimensions") {
  for (const char* variant : {"task.variant=paper", "task.variant=code"}) {
    const std::unique_ptr<Task> task = make({variant});
    const SampledPrompts drawn = sample_prompts_of(*task, {RandomDomain::Train, 64, 0, false}, 0, 26);
    for (std::size_t at = 0; at < 64 * 26; ++at) {
      const bool outlier = drawn.mask[at] == 0;
      CHECK((drawn.tokens[2 * at * 24 + 19] != 0) == outlier);        // 5 active dimensions
      CHECK((drawn.tokens[(2 * at + 1) * 24 + 19] != 0) == outlier);  // the y-token is a whole vector
      CHECK(drawn.tokens[(2 * at + 1) * 24 + 20] == 0);
    }
  }
}

TEST_CASE("orthogonal_outlier_regression: suites without outliers and with a fixed layout") {
  check_suites(*make(), 51, 98, 100);
  check_suites(*make({"task.variant=code"}), 51, 98, 100);
}

TEST_CASE("orthogonal_outlier_regression: loss and scores are those of clean points") {
  check_pooling(*make({"task.points=40", "task.curriculum.enabled=false"}));
}

TEST_CASE("orthogonal_outlier_regression: batches are the host's prompts") {
  for (const char* variant : {"task.variant=paper", "task.variant=code"}) {
    check_prompt_batches(*make({variant, "task.dim=5", "task.points=9", "task.curriculum.enabled=false"}));
    check_prompt_batches(*make({variant, "task.dim=3", "task.points=2", "task.curriculum.enabled=false"}));
  }
}

TEST_CASE("orthogonal_outlier_regression: impossible settings are refused") {
  check_refused("orthogonal_outlier_regression", {"task.outlier_probability=1"},
                {"task.outlier_probability", "[0, 1)"});
  check_refused("orthogonal_outlier_regression", {"task.variant=garg"}, {"task.variant", "paper", "code"});
  check_refused("orthogonal_outlier_regression", {"task.dim=2"}, {"task.dim", "got 2"});
}

TEST_CASE("orthogonal_outlier_regression: CUDA matches CPU") {
  if (skip_cuda()) return;
  // A small a^2 + b^2 makes an outlier large and its relative error too: the radius of a pair is off by up to 2e-6 of
  // 3e-4 at worst, and of 0.1 where one pair in 200 is.
  for (const char* variant : {"task.variant=paper", "task.variant=code"}) {
    const std::unique_ptr<Task> task = make({variant, "task.curriculum.enabled=false"});
    check_cuda_prompts(*task, 1e-3);
    check_cuda_prompts(*task->suite("fixed_mask"), 1e-3);
    check_cuda_prompts(*make({variant, "task.dim=3", "task.points=7", "task.curriculum.enabled=false"}), 1e-3);
  }
}

}  // namespace
}  // namespace graft::test
