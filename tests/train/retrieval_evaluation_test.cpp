// Accuracy at the level of whole answers: what an evaluation of a retrieval task reports and what ends its runs.

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/tiny_run.h"
#include "train/evaluation.h"
#include "train/stop_rule.h"

namespace graft::test {
namespace {

RunConfig retrieval_config(const std::string& task, std::vector<std::string> more = {}) {
  std::vector<std::string> keys = {"task.name=" + task,  "model.width=16", "model.layers=1",     "model.heads=2",
                                   "train.batch=4",      "train.steps=20", "eval.prompts=240",   "eval.batch=24",
                                   "eval.bootstrap=0",   "eval.every=0",   "checkpoint.every=0", "optimizer.lr=1e-3",
                                   "model.preset=mamba", "model.state=4"};
  if (task == "ngram_retrieval") {
    for (const char* key : {"task.length_min=8", "task.length_max=8", "task.eval_length=8", "task.alphabet=3",
                            "task.query=3", "task.target=2"}) {
      keys.emplace_back(key);
    }
  } else {
    keys.emplace_back("task.length=4");
  }
  keys.insert(keys.end(), more.begin(), more.end());
  return parse_config("[run]\nname = \"retrieval\"\n", "retrieval.toml", keys);
}

EvaluationResult evaluate(const RunConfig& config) {
  TinySession tiny(config);
  tiny.session.initialize();
  Evaluator evaluator(tiny.session, {});
  return evaluator.run(0);
}

TEST_CASE("retrieval: accuracy is the share of prompts of which the whole answer is right") {
  const EvaluationResult ngram = evaluate(retrieval_config("ngram_retrieval"));
  REQUIRE(ngram.accuracy.has_value());
  const std::vector<double>& means = ngram.positions.mean;
  REQUIRE(means.size() == 2);
  CHECK(*ngram.accuracy <= *std::min_element(means.begin(), means.end()));
  CHECK(*ngram.accuracy >= means[0] + means[1] - 1);
  CHECK(ngram.json().at("summary").at("accuracy") == *ngram.accuracy);
  CHECK(summary_table(ngram, "mamba", "accuracy").starts_with("accuracy "));

  // the end token, the second point, does not count
  const EvaluationResult position = evaluate(retrieval_config("position_retrieval"));
  REQUIRE(position.accuracy.has_value());
  CHECK(*position.accuracy == doctest::Approx(position.positions.mean.at(0)).epsilon(1e-12));

  const EvaluationResult regression = evaluate(tiny_config());
  CHECK_FALSE(regression.accuracy.has_value());
  CHECK_FALSE(regression.json().at("summary").contains("accuracy"));
  CHECK(summary_table(regression, "transformer", "squared error").find("whole answer") == std::string::npos);
}

TEST_CASE("retrieval: the stop rule is about whole answers unless positions are named") {
  const auto rule_of = [](const std::vector<std::string>& keys) {
    return StopRule::of(retrieval_config("ngram_retrieval", keys)).str();
  };
  CHECK(rule_of({"eval.every=10", "eval.stop_above=0.95"}) == "accuracy at least 0.95");
  CHECK(rule_of({"eval.every=10", "eval.stop_above=0.95", "eval.stop_to=0"}) ==
        "mean over positions 0..0 at least 0.95");
  CHECK(StopRule::of(tiny_config({"eval.every=10", "eval.stop_below=1"})).str() == "mean over positions 0.. at most 1");
  StopRule rule{0.9};
  rule.answers = true;
  CHECK(rule.decided({0, 0}, 0.9));
  CHECK_FALSE(rule.decided({1, 1}, 0.89));
  CHECK_FALSE(rule.decided({1, 1}));  // a line without it

  const TemporaryDirectory directory;
  const TrainingOutcome outcome =
      train_in(directory / "run", retrieval_config("position_retrieval", {"eval.every=5", "eval.stop_above=0"}));
  CHECK(outcome.stopped);
  CHECK(outcome.step == 5);
  REQUIRE(outcome.evaluation.accuracy.has_value());
  std::ifstream file(directory / "run/run.json");
  const nlohmann::json record = nlohmann::json::parse(file);
  CHECK(record.at("stopped").at("rule") == "accuracy at least 0");
  CHECK(record.at("stopped").at("value") == *outcome.evaluation.accuracy);
}

TEST_CASE("retrieval: baselines by name are refused") {
  for (const char* names : {"eval.baselines=[\"zero\"]", "eval.baselines=[\"all\", \"zero\"]"}) {
    CHECK_THROWS_WITH_AS(static_cast<void>(retrieval_config("ngram_retrieval", {names})),
                         doctest::Contains("no baseline reads the token ids of ngram_retrieval"), ConfigError);
  }
  for (const char* names : {"eval.baselines=[\"all\"]", "eval.baselines=[]"}) {
    CHECK(evaluate(retrieval_config("ngram_retrieval", {names})).baselines.empty());
  }
}

}  // namespace
}  // namespace graft::test
