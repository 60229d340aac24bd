// What a run's directory keeps of its configuration reads back: resolved.toml is what `graft eval`, `ckpt gc` and a
// resume start from.

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/task.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/process.h"
#include "tests/train/tiny_run.h"
#include "train/sweep.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

/// Reading the resolved text again gives the same configuration.
void check_reads_back(const RunConfig& config) {
  const std::string text = resolved_toml(config);
  std::string refusal;
  try {
    const RunConfig again = parse_config(text, "resolved.toml");
    CHECK(resolved_toml(again) == text);
    CHECK(config_hash8(again) == config_hash8(config));
    CHECK(identity_differences(config, again).empty());
  } catch (const ConfigError& error) {
    refusal = error.what();
  }
  CHECK(refusal.empty());
}

TEST_CASE("resolved configurations: all that come with the project read back as they were") {
  int files = 0;
  int points = 0;
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(GRAFT_SOURCE_DIR) / "configs")) {
    const std::string path = entry.path().string();
    if (!path.ends_with(".toml")) continue;
    CAPTURE(path);
    if (!path.ends_with(".sweep.toml")) {
      check_reads_back(load_config(path));
      ++files;
      continue;
    }
    const Sweep sweep = load_sweep(path);
    for (const SweepPoint& point : sweep.points) {
      CAPTURE(point.name);
      check_reads_back(sweep.config(point));
      ++points;
    }
  }
  CHECK(files >= 15);
  CHECK(points >= 400);
}

TEST_CASE("resolved configurations: the epochs of vector_mqar decide how often the learning rate changes") {
  const fs::path file = fs::path(GRAFT_SOURCE_DIR) / "configs/icl/vector_mqar.toml";
  const auto every = [&](const std::vector<std::string>& overrides) {
    return load_config(file.string(), overrides).schedule.every;
  };
  CHECK(every({}) == 4688);
  CHECK(every({"train.batch=32"}) == 9375);
  CHECK(every({"task.samples=1000"}) == 16);
  CHECK(every({"task.samples=0"}) == 1);
  CHECK(every({"schedule.name=constant"}) == 1);
  CHECK(every({"schedule.name=linear"}) == 4688);
  CHECK(every({"schedule.every=7"}) == 7);
  CHECK(resolved_toml(load_config(file.string())).find("every = 4688") != std::string::npos);
  // a default that cannot be worked out is no second mistake
  try {
    static_cast<void>(every({"train.batch=0"}));
    FAIL("accepted");
  } catch (const ConfigError& error) {
    CHECK(std::string(error.what()).find("train.batch: got 0") != std::string::npos);
    CHECK(std::string(error.what()).find(": 1 mistake;") != std::string::npos);
  }
}

/// What makes a task small.
const std::map<std::string, std::vector<std::string>>& small_tasks() {
  static const std::vector<std::string> regression = {"task.dim=4", "task.points=6", "task.curriculum.enabled=false"};
  static const auto with = [](std::vector<std::string> more) {
    more.insert(more.end(), regression.begin(), regression.end());
    return more;
  };
  static const std::map<std::string, std::vector<std::string>> tasks = {
      {"linear_regression", with({})},
      {"sparse_linear_regression", with({"task.sparsity=2"})},
      {"relu_2nn_regression", with({"task.hidden=3", "eval.baselines=[\"zero\"]"})},
      {"decision_tree", with({"task.depth=2"})},
      {"sparse_parity", with({})},
      {"orthogonal_outlier_regression", with({"eval.suites=no_outliers,fixed_mask"})},
      {"many_outlier_regression", with({"eval.suites=fixed_mask"})},
      {"chain_of_thought", with({"task.hidden=2"})},
      {"vector_mqar", {"task.dim=4", "task.pairs=4", "task.queries=2", "task.samples=10", "schedule.name=cosine"}},
      {"vector_retrieval", {"task.dim=4", "task.pairs=4"}},
      {"ngram_retrieval",
       {"task.length_min=8", "task.length_max=8", "task.eval_length=8", "task.alphabet=3", "task.query=3",
        "task.target=2"}},
      {"position_retrieval", {"task.length=4"}},
  };
  return tasks;
}

/// Trains two steps; the run lies in `directory`/run.
void train_small(const fs::path& directory, const std::string& task, const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> keys = {"train.steps=2", "eval.every=1", "eval.prompts=8", "eval.batch=4"};
  const std::vector<std::string>& small = small_tasks().at(task);
  keys.insert(keys.end(), small.begin(), small.end());
  keys.insert(keys.end(), overrides.begin(), overrides.end());
  const RunConfig config = tiny_task_config(task, keys);
  CHECK(train_in(directory / "run", config).step == 2);
}

TEST_CASE("resolved configurations: a run of every task is evaluated from its directory") {
  std::vector<std::string> known;
  for (const auto& [task, keys] : small_tasks()) known.push_back(task);
  CHECK(known == task_names());
  for (const std::string& task : known) {
    CAPTURE(task);
    const TemporaryDirectory directory;
    train_small(directory.path(), task);
    const Result result = run_graft(directory.path(), {"eval", "run", "--device", "cpu", "--out", "again.jsonl"});
    CHECK(result.err == "");
    REQUIRE(result.code == 0);
    const std::vector<nlohmann::json> trained = lines_without_times(directory / "run/eval.jsonl");
    CHECK(lines_without_times(directory / "again.jsonl") == std::vector<nlohmann::json>{trained.back()});
  }
}

TEST_CASE("resolved configurations: commands take a vector_mqar run of either layout, with other pairs too") {
  for (const auto& [layout, preset] :
       {std::pair{"queries", "mamba"}, {"queries", "transformer"}, {"zoology", "mamba"}}) {
    CAPTURE(layout);
    CAPTURE(preset);
    const TemporaryDirectory directory;
    train_small(directory.path(), "vector_mqar",
                {fmt::format("task.layout={}", layout), fmt::format("model.preset={}", preset)});
    for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
             {"eval", "run", "--device", "cpu"},
             {"eval", "run", "--device", "cpu", "-o", "task.pairs=3"},
             {"eval", "run", "--device", "cpu", "-o", "task.layout=queries"},
             {"eval", "run", "--device", "cpu", "-o", "task.layout=zoology", "-o", "task.pairs=2"},
             {"ckpt", "gc", "run"},
             {"inspect", "run/resolved.toml"},
             {"train", "run/resolved.toml", "--device", "cpu", "--run-dir", "run"}}) {
      CAPTURE(fmt::format("{}", fmt::join(command, " ")));
      const Result result = run_graft(directory.path(), command);
      CHECK(result.err == "");
      CHECK(result.code == 0);
    }
  }
}

}  // namespace
}  // namespace graft::test
