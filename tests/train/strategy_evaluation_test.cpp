#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "tests/support/parity.h"
#include "tests/train/tiny_run.h"
#include "train/evaluation.h"

namespace graft::test {
namespace {

EvaluationResult evaluate(TinySession& tiny, const std::string& suite, int runs = 1) {
  Evaluator evaluator(tiny.session, {}, Evaluator::CacheUse::ReadOnly, suite);
  EvaluationResult result = evaluator.run(0);
  for (int run = 1; run < runs; ++run) {
    const EvaluationResult again = evaluator.run(0);  // captured, while the first one was eager in part
    CHECK(again.json().at("positions") == result.json().at("positions"));
    CHECK(again.json().at("lower") == result.json().at("lower"));  // where nothing is scored, "nan" equals itself
  }
  return result;
}

TEST_CASE("evaluation: every prompt strategy scores each position of each prompt once") {
  TinySession tiny(tiny_config());
  tiny.session.initialize();
  const EvaluationResult standard = evaluate(tiny, kStandardSuite);
  for (const std::string& suite : tiny.experiment.task->suites()) {
    CAPTURE(suite);
    const std::size_t scored = suite == "orthogonal_query" ? 3 : 5;
    const EvaluationResult result = evaluate(tiny, suite, suite == "overlapping" ? 3 : 1);
    CHECK(result.suite == suite);
    CHECK(result.prompts == 24);
    REQUIRE(result.positions.mean.size() == 5);
    REQUIRE(result.baselines.size() == 4);
    for (std::size_t i = 0; i < 5; ++i) {
      CAPTURE(i);
      CHECK(result.positions.count[i] == (i < scored ? 24 : 0));
      CHECK(std::isnan(result.positions.mean[i]) == (i >= scored));
      for (const auto& [name, values] : result.baselines) CHECK(std::isnan(values[i]) == (i >= scored));
      if (i >= scored) continue;
      CHECK(result.positions.lower[i] <= result.positions.mean[i]);
      CHECK(result.positions.mean[i] <= result.positions.upper[i]);
    }
    CHECK(std::isfinite(result.summary.mean_from_second));
    CHECK(summary_table(result, "transformer", "squared error").find("nan") == std::string::npos);

    const std::vector<double>& zero = result.baselines.at("zero");
    const std::vector<double>& fit = result.baselines.at("least_squares");
    if (suite == "overlapping") {
      for (std::size_t i = 1; i < 5; ++i) CHECK(fit[i] < 1e-9);  // seen before
      for (const double value : zero) CHECK(value > 0.5);
    } else if (suite == "orthogonal_query") {  // about such a query the points say nothing
      for (std::size_t i = 0; i < 3; ++i) CHECK(fit[i] == doctest::Approx(zero[i]).epsilon(1e-4));
    } else if (suite == "half_subspace") {  // dim / 2 = 1: one point is enough
      for (std::size_t i = 1; i < 5; ++i) CHECK(fit[i] < 1e-6);
    } else if (suite == "noisy") {
      CHECK(fit[4] > 1e-2);
    } else {
      for (std::size_t i = 3; i < 5; ++i) CHECK(fit[i] < 1e-4);
    }
    // Before there is a context, these ask what the standard evaluation asks.
    if (suite == "overlapping" || suite == "orthogonal_query" || suite == "random_quadrants") {
      CHECK(result.positions.mean[0] == standard.positions.mean[0]);
      CHECK(result.positions.lower[0] == standard.positions.lower[0]);  // prompts are resampled, not sequences
    }
    if (suite == "scaled_y_2") {
      for (std::size_t i = 0; i < 5; ++i) {
        CHECK(zero[i] == doctest::Approx(4 * standard.baselines.at("zero")[i]).epsilon(1e-5));
      }
    }
  }
}

TEST_CASE("evaluation: prompt strategies do not depend on the batch") {
  const std::string precision = "train.precision=fp64";
  TinySession small(tiny_config({precision, "eval.batch=1"}));
  TinySession large(tiny_config({precision, "eval.batch=24"}));
  small.session.initialize();
  large.session.initialize();
  for (const char* suite : {"random_quadrants", "orthogonal_query", "noisy", "skewed"}) {
    CAPTURE(suite);
    const EvaluationResult a = evaluate(small, suite);
    const EvaluationResult b = evaluate(large, suite);
    CHECK(a.baselines.at("zero")[1] == b.baselines.at("zero")[1]);
    for (std::size_t i = 0; i < (std::string(suite) == "orthogonal_query" ? 3 : 5); ++i) {
      CHECK(a.positions.mean[i] == doctest::Approx(b.positions.mean[i]).epsilon(1e-12));
    }
  }
}

TEST_CASE("evaluation: a model of ReLU networks on linear regression") {
  TinySession tiny(tiny_config({"task.name=\"relu_2nn_regression\"", "task.hidden=4"}));
  tiny.session.initialize();
  const EvaluationResult result = evaluate(tiny, "linear_regression", 2);
  for (const std::int64_t count : result.positions.count) CHECK(count == 24);
  CHECK(result.baselines.at("least_squares")[3] < 1e-6);
  CHECK(result.baselines.size() == 4);
}

TEST_CASE("evaluation: CUDA: prompt strategies match the CPU") {
  if (skip_cuda()) return;
  TinySession cpu(tiny_config());
  TinySession gpu(tiny_config(), Backend::Cuda);
  cpu.session.initialize();
  gpu.session.initialize();
  for (const std::string& suite : cpu.experiment.task->suites()) {
    CAPTURE(suite);
    const EvaluationResult a = evaluate(cpu, suite);
    const EvaluationResult b = evaluate(gpu, suite, 2);
    CHECK(a.baselines.at("zero")[0] == b.baselines.at("zero")[0]);
    CHECK(a.positions.count == b.positions.count);
    for (std::size_t i = 0; i < 5; ++i) {
      if (a.positions.count[i] > 0) CHECK(b.positions.mean[i] == doctest::Approx(a.positions.mean[i]).epsilon(1e-3));
    }
  }
}

}  // namespace
}  // namespace graft::test
