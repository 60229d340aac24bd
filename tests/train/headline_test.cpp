// The one number that stands for an evaluation: which it is, and that every place shows the same.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/temporary_directory.h"
#include "tests/train/tiny_run.h"
#include "train/evaluation.h"
#include "train/sweep_run.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kOutliers = {"task.dim=4", "task.points=12", "task.curriculum.enabled=false"};
const std::vector<std::string> kRecall = {"task.dim=4", "task.pairs=4", "task.queries=3", "task.samples=10"};

TEST_CASE("headline: the task says which number it is") {
  const auto headline = [](const RunConfig& config) { return Experiment(config).task->headline(); };
  CHECK(headline(tiny_config()) == Headline::MeanFromSecond);
  CHECK(headline(tiny_task_config("vector_mqar", {})) == Headline::MeanAll);
  CHECK(headline(tiny_task_config("vector_retrieval", {})) == Headline::MeanAll);
  for (const char* name : {"many_outlier_regression", "orthogonal_outlier_regression"}) {
    const Experiment experiment(tiny_task_config(name, {}));
    CHECK(experiment.task->headline() == Headline::Pooled);
    CHECK(experiment.task->suite("no_outliers")->headline() == Headline::MeanFromSecond);
    CHECK(experiment.task->suite("fixed_mask")->headline() == Headline::MeanFromSecond);
  }
}

/// Trains, and compares what was logged, saved and shown with `value` of the last line's summary.
void check_shown(const RunConfig& config, const std::string& headline, const std::string& column) {
  CAPTURE(config.task);
  const TemporaryDirectory directory;
  std::FILE* const out = std::fopen((directory / "out.txt").c_str(), "w");
  REQUIRE(out != nullptr);
  const TrainingOutcome outcome = train_in(directory / "run", config, out);
  std::fclose(out);
  const nlohmann::json line = json_lines(directory / "run/eval.jsonl").back();
  CHECK(line.at("summary").at("headline") == headline);
  const double value = line.at("summary").at(headline).get<double>();
  REQUIRE(std::isfinite(value));
  const std::string said = contents(directory / "out.txt");
  CHECK(said.find(fmt::format("mean {:.4g}, last position", value)) != std::string::npos);
  CHECK(said.find("nan") == std::string::npos);

  const std::string table = summary_table(outcome.evaluation, "mamba", "score");
  CHECK(table.substr(0, table.find("i=")).find(column) != std::string::npos);
  CHECK(table.find(fmt::format("{:.4g}", value)) != std::string::npos);
  CHECK(table.find("nan") == std::string::npos);

  const std::vector<CheckpointInfo> saved = CheckpointDirectory(directory / "run/ckpt").list();
  REQUIRE(saved.size() == 1);
  REQUIRE(saved[0].score.has_value());
  CHECK(saved[0].score->value == value);

  SweepPoint point;
  point.hash = config_hash8(config);
  point.steps = config.train.steps;
  CHECK(status_of(point, directory / "run").mean == value);
}

TEST_CASE("headline: terminal, table, best checkpoint and sweep status show it") {
  check_shown(tiny_task_config("vector_mqar", kRecall), "mean_all", " mean ");
  check_shown(tiny_task_config("vector_retrieval", {"task.dim=4", "task.pairs=4"}), "mean_all", " mean ");
  check_shown(tiny_task_config("many_outlier_regression", kOutliers), "pooled", "pooled");
  check_shown(tiny_config(), "mean_from_second", "mean i>=1");
}

TEST_CASE("headline: a line of an older program has the mean over the positions but the first") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_task_config("vector_mqar", kRecall);
  static_cast<void>(train_in(directory / "run", config));
  nlohmann::json line = json_lines(directory / "run/eval.jsonl").back();
  line.at("summary").erase("headline");
  write_contents(directory / "run/eval.jsonl", line.dump() + "\n");
  SweepPoint point;
  point.hash = config_hash8(config);
  point.steps = config.train.steps;
  CHECK(status_of(point, directory / "run").mean == line.at("summary").at("mean_from_second").get<double>());
}

TEST_CASE("metrics: examples and tokens are those that were read, without the empty places of a short step") {
  const TemporaryDirectory directory;
  static_cast<void>(train_in(directory / "run", tiny_task_config("vector_mqar", kRecall)));  // epochs of 10: 4, 4, 2
  std::vector<std::int64_t> examples, tokens;
  for (const nlohmann::json& line : json_lines(directory / "run/metrics.jsonl")) {
    examples.push_back(line.at("examples").get<std::int64_t>());
    tokens.push_back(line.at("tokens").get<std::int64_t>());
  }
  CHECK(examples == std::vector<std::int64_t>{4, 8, 10, 14, 18});
  CHECK(tokens == std::vector<std::int64_t>{44, 88, 110, 154, 198});
  const nlohmann::json state = nlohmann::json::parse(contents(directory / "run/ckpt/step_5/state.json"));
  CHECK(state.at("examples") == 18);
}

TEST_CASE("summary table: a baseline that answered fewer prompts says so, as does the line of eval.jsonl") {
  TinySession tiny(tiny_task_config("decision_tree", {"task.dim=4", "task.points=6", "task.depth=2",
                                                      "task.curriculum.enabled=false", "eval.baseline_prompts=5"}));
  tiny.session.initialize();
  Evaluator evaluator(tiny.session, {});
  const EvaluationResult result = evaluator.run(0);
  const nlohmann::ordered_json line = result.json();
  CHECK(line.at("baseline_prompts").size() == line.at("baselines").size());
  CHECK(line.at("baseline_prompts").at("zero") == 16);
  int fewer = 0;
  for (const auto& [name, prompts] : result.baseline_prompts) fewer += prompts == 5 ? 1 : 0;
  CHECK(fewer >= 2);
  const std::string table = summary_table(result, "mamba", "squared error");
  CHECK(table.find("~: over 5 of 16 prompts: ") != std::string::npos);
  const std::string cheap = table.substr(table.rfind("over 5 of 16"));
  CHECK(cheap.find("zero") == std::string::npos);
}

}  // namespace
}  // namespace graft::test
