// eval.suites: evaluations of the task beside the standard one while a run goes on.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/tiny_run.h"
#include "train/evaluation.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

RunConfig outlier_config(const std::vector<std::string>& more = {}) {
  std::vector<std::string> keys = {"task.dim=4",
                                   "task.points=12",
                                   "task.curriculum.dims_start=3",
                                   "task.curriculum.points_start=5",
                                   "task.curriculum.points_interval=7",
                                   "model.preset=transformer",
                                   "model.heads=2",
                                   "train.steps=20",
                                   "train.log_every=5",
                                   "eval.suites=no_outliers,fixed_mask",
                                   "eval.every=5",
                                   "checkpoint.every=10"};
  keys.insert(keys.end(), more.begin(), more.end());
  return tiny_task_config("orthogonal_outlier_regression", keys);
}

std::vector<std::string> suites_of(const fs::path& file) {
  std::vector<std::string> names;
  for (const nlohmann::json& line : json_lines(file)) {
    names.push_back(fmt::format("{} {}", line.at("step").get<std::int64_t>(), line.at("suite").get<std::string>()));
  }
  return names;
}

TEST_CASE("suites: a run writes each of eval.suites, then the standard evaluation, as `graft eval --suite` does") {
  const TemporaryDirectory directory;
  const RunConfig config = outlier_config();
  std::FILE* const out = std::fopen((directory / "out.txt").c_str(), "w");
  REQUIRE(out != nullptr);
  const TrainingOutcome outcome = train_in(directory / "run", config, out);
  std::fclose(out);
  const std::string said = contents(directory / "out.txt");
  CHECK(said.find("eval at step 20: squared error pooled mean ") != std::string::npos);
  CHECK(said.find("eval at step 20, suite no_outliers: squared error mean ") != std::string::npos);
  CHECK(said.find("position 10 ") != std::string::npos);  // the last clean one of the fixed layout
  CHECK(said.find("nan") == std::string::npos);
  const fs::path file = directory / "run/eval.jsonl";
  std::vector<std::string> expected;
  for (const int step : {5, 10, 15, 20}) {
    for (const char* suite : {"no_outliers", "fixed_mask", "standard"})
      expected.push_back(fmt::format("{} {}", step, suite));
  }
  CHECK(suites_of(file) == expected);
  CHECK(outcome.evaluation.suite == kStandardSuite);

  TinySession tiny(config);
  tiny.session.restore(*CheckpointDirectory(directory / "run/ckpt").load_latest(), false);
  const std::vector<nlohmann::json> lines = lines_without_times(file);
  for (std::size_t i = 0; i < 3; ++i) {
    const nlohmann::json& line = lines[lines.size() - 3 + i];
    Evaluator evaluator(tiny.session, {}, Evaluator::CacheUse::ReadOnly, line.at("suite").get<std::string>());
    nlohmann::json alone = nlohmann::json::parse(evaluator.run(20).json().dump());
    alone.erase("seconds");
    CHECK(alone == line);
  }
}

TEST_CASE("suites: they change no other number, and eval.suites is not part of the hash") {
  const TemporaryDirectory directory;
  const RunConfig with = outlier_config(), without = outlier_config({"eval.suites=[]"});
  CHECK(config_hash8(with) == config_hash8(without));
  CHECK(train_in(directory / "with", with).parameter_hash == train_in(directory / "without", without).parameter_hash);
  CHECK(lines_without_times(directory / "with/metrics.jsonl") ==
        lines_without_times(directory / "without/metrics.jsonl"));
  std::vector<nlohmann::json> standard;
  for (const nlohmann::json& line : lines_without_times(directory / "with/eval.jsonl")) {
    if (line.at("suite") == kStandardSuite) standard.push_back(line);
  }
  CHECK(standard == lines_without_times(directory / "without/eval.jsonl"));
  // eager as captured
  const RunConfig eager = outlier_config({"train.capture=false"});
  static_cast<void>(train_in(directory / "eager", eager));
  CHECK(lines_without_times(directory / "eager/eval.jsonl") == lines_without_times(directory / "with/eval.jsonl"));
}

TEST_CASE("suites: an interrupted run has every line once") {
  const TemporaryDirectory directory;
  const RunConfig config = outlier_config();
  static_cast<void>(train_in(directory / "whole", config));
  const std::vector<nlohmann::json> whole = lines_without_times(directory / "whole/eval.jsonl");
  const fs::path run = directory / "run";
  static_cast<void>(train_in(run, outlier_config({"train.steps=10"})));
  CHECK(json_lines(run / "eval.jsonl").size() == 6);
  // killed behind step 10: its lines of step 15 are written again
  const std::string kept = contents(run / "eval.jsonl");
  write_contents(run / "eval.jsonl", kept + whole[6].dump() + "\n" + whole[7].dump() + "\n");
  static_cast<void>(train_in(run, config));
  CHECK(lines_without_times(run / "eval.jsonl") == whole);
  CHECK(lines_without_times(run / "metrics.jsonl").size() ==
        lines_without_times(directory / "whole/metrics.jsonl").size());
  // The disk lost the end of what was written for a step: an evaluation whose standard line is missing is made again,
  // in the middle of training and at its end.
  const auto first_lines = [&whole](std::size_t count) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text += whole[i].dump() + "\n";
    return text;
  };
  const fs::path torn = directory / "torn";
  for (const std::size_t left : {5, 4, 3}) {
    CAPTURE(left);
    fs::remove_all(torn);
    static_cast<void>(train_in(torn, outlier_config({"train.steps=10"})));
    write_contents(torn / "eval.jsonl", first_lines(left) + "{\"step\":10,\"su");
    static_cast<void>(train_in(torn, config));
    CHECK(lines_without_times(torn / "eval.jsonl") == whole);
  }
  write_contents(torn / "eval.jsonl", first_lines(11));
  static_cast<void>(train_in(torn, config));
  CHECK(lines_without_times(torn / "eval.jsonl") == whole);
  // and one that is done writes nothing more
  static_cast<void>(train_in(run, config));
  CHECK(lines_without_times(run / "eval.jsonl") == whole);
}

TEST_CASE("suites: names that the task does not have are refused with those it has") {
  const auto refused = [](const std::vector<std::string>& keys, const std::string& message) {
    CAPTURE(message);
    CHECK_THROWS_WITH_AS(static_cast<void>(outlier_config(keys)), doctest::Contains(message.c_str()), ConfigError);
  };
  refused({"eval.suites=no_outlier"},
          "eval.suites: got \"no_outlier\", expected some of no_outliers, fixed_mask; did you mean `no_outliers`?");
  refused({"eval.suites=[\"everything\"]"}, "got \"everything\", expected some of no_outliers, fixed_mask\n");
  refused({"eval.suites=standard"}, "got \"standard\", which every evaluation has; leave it out");
  refused({"eval.suites=fixed_mask,fixed_mask"}, "got \"fixed_mask\" a second time, expected it once");
  CHECK_THROWS_WITH_AS(static_cast<void>(parse_config("[task]\nname = \"vector_mqar\"\n[model]\npreset = \"mamba\"\n",
                                                      "a", {"eval.suites=noisy"})),
                       doctest::Contains("expected none: task vector_mqar has no others than the standard evaluation"),
                       ConfigError);
  CHECK(outlier_config({"eval.suites=[]"}).eval.suites.empty());
}

}  // namespace
}  // namespace graft::test
