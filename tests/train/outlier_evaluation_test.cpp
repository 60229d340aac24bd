#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "tests/train/tiny_run.h"
#include "train/evaluation.h"

namespace graft::test {
namespace {

EvaluationResult evaluate(TinySession& tiny, const std::string& suite) {
  Evaluator evaluator(tiny.session, {}, Evaluator::CacheUse::ReadOnly, suite);
  return evaluator.run(0);
}

TEST_CASE("evaluation: outliers do not count, in the model's scores and in those of baselines") {
  const RunConfig config =
      tiny_task_config("many_outlier_regression",
                       {"task.dim=3", "task.points=512", "task.curriculum.enabled=false", "model.preset=transformer",
                        "model.heads=2", "eval.prompts=64", "eval.batch=16", "eval.bootstrap=20"});
  TinySession tiny(config);
  tiny.session.initialize();

  const EvaluationResult standard = evaluate(tiny, kStandardSuite);
  std::int64_t clean = 0;
  for (std::size_t i = 0; i < 512; ++i) clean += standard.positions.count[i];
  const double points = 64 * 512;
  CHECK(std::abs(static_cast<double>(clean) - points / 10) < 4 * std::sqrt(points * 0.09));
  CHECK(standard.baselines.count("least_squares_clean") == 1);

  const EvaluationResult fixed = evaluate(tiny, "fixed_mask");
  CHECK(fixed.suite == "fixed_mask");
  for (std::size_t i = 0; i < 512; ++i) {
    const bool scored = i % 10 == 9 && i < 510;
    CAPTURE(i);
    CHECK(fixed.positions.count[i] == (scored ? 64 : 0));
    CHECK(std::isnan(fixed.positions.mean[i]) == !scored);
    for (const auto& [name, values] : fixed.baselines) CHECK(std::isnan(values[i]) == !scored);
  }
  // the 50th clean example is at 499; after three clean ones least squares knows the weights
  CHECK(fixed.positions.mean[499] > 0);
  CHECK(fixed.baselines.at("least_squares_clean")[499] < 1e-9);
  CHECK(fixed.baselines.at("zero")[499] > 1);
  CHECK(std::isfinite(fixed.summary.mean_from_second));
  CHECK(std::isfinite(fixed.summary.pooled));
  CHECK(fixed.json().at("positions")[498] == "nan");  // no position without a value is taken for one with 0
  const std::string table = summary_table(fixed, "transformer", "squared error");
  CHECK(table.find("i=499") != std::string::npos);
  CHECK(table.find("nan") == std::string::npos);

  const EvaluationResult plain = evaluate(tiny, "no_outliers");
  for (std::size_t i = 0; i < 512; ++i) CHECK(plain.positions.count[i] == 64);
  for (std::size_t i = 3; i < 512; ++i) CHECK(plain.baselines.at("least_squares_clean")[i] < 1e-6);
}

}  // namespace
}  // namespace graft::test
