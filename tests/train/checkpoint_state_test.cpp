// Checkpoints whose checksums are right and whose values cannot be, and what a log interval leaves in one.

#include "train/checkpoint_state.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/watched_stream.h"
#include "tests/train/example_state.h"
#include "tests/train/process.h"
#include "tests/train/tiny_run.h"
#include "train/log_interval.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

CheckpointData example(std::int64_t step) {
  CheckpointData data;
  CheckpointTensor tensor{"w", DType::F32, {2}, std::vector<std::byte>(8)};
  data.model = {tensor};
  data.optimizer = {tensor};
  data.state = example_state(step);
  data.step = step;
  data.score = CheckpointScore{0.25, "squared error", false};
  return data;
}

/// Checkpoints of steps 1 and 20; whether every way in refuses the second one and a resume takes the first.
class Forgery {
 public:
  Forgery() : checkpoints_(directory_.path()) {
    checkpoints_.save(example(1));
    checkpoints_.save(example(20));
  }
  [[nodiscard]] fs::path path() const { return directory_.path() / "step_20"; }
  [[nodiscard]] std::string state() const { return contents(path() / "state.json"); }
  void check_refused(const char* file, const std::string& part) {
    CAPTURE(part);
    const auto refused = [&](const auto& call) {
      try {
        call();
      } catch (const DataError& error) {
        const std::string_view text = error.what();
        if (text.find((path() / file).string()) != std::string_view::npos && text.find(part) != std::string_view::npos)
          return true;
        MESSAGE(text);
      }
      return false;
    };
    CHECK(refused([&] { CheckpointDirectory::verify(path()); }));
    CHECK(refused([&] { (void)CheckpointDirectory::load(path()); }));
    CHECK(refused([&] { (void)CheckpointDirectory::load(path(), CheckpointParts::ModelOnly); }));
    CheckpointReport report;
    CHECK(checkpoints_.load_latest(&report).value().step == 1);
    REQUIRE(report.skipped.size() == 1);
    CHECK(report.skipped[0].reason.find(part) != std::string::npos);
    // Nor does it let the one that can be read be removed.
    CHECK(CheckpointDirectory(directory_.path()).surplus({.keep_last = 1, .permanent_every = 0}).empty());
  }

 private:
  TemporaryDirectory directory_;
  CheckpointDirectory checkpoints_;
};

TEST_CASE("checkpoint state: values that no run can have saved are damage, whatever the checksums say") {
  struct Change {
    const char* pointer;
    json value;  // null: without it
    const char* part;
  };
  const std::uint64_t huge = std::uint64_t{1} << 63U;
  const std::vector<Change> changes = {
      {"/step_state/step", -5, "step_state.step is -5, expected 20"},
      {"/step_state/step", 13, "step_state.step is 13, expected 20"},
      {"/step_state/step", 20.5, "step_state.step is 20.5, expected 20"},
      {"/step_state/step", "20", "step_state.step is \"20\", expected 20"},
      {"/step_state/step", nullptr, "step_state.step is missing"},
      {"/step_state", nullptr, "step_state is missing"},
      {"/step_state", 5, "step_state is 5, expected an object"},
      {"/step_state/seed", 6, "seed is 5, expected 6 as in step_state"},
      {"/step_state/seed", -1, "step_state.seed is -1"},
      {"/seed", 6, "seed is 6, expected 5"},
      {"/seed", nullptr, "seed is missing"},
      {"/step_state/updates", huge, "step_state.updates is 9223372036854775808, expected 20"},
      {"/step_state/updates", 19, "step_state.updates is 19, expected 20"},
      {"/step_state/updates", -1, "step_state.updates is -1"},
      {"/step_state/skipped", 1, "step_state.updates is 20, expected 19"},
      {"/step_state/skipped", huge, "step_state.skipped is 9223372036854775808"},
      {"/step_state/skipped", 21, "step_state.skipped is 21, expected at most 20"},
      {"/step_state/skipped_in_row", 50, "step_state.skipped_in_row is 50, expected an integer from 0 to 10"},
      {"/step_state/skipped_in_row", 1, "step_state.skipped_in_row is 1, expected at most 0"},
      {"/step_state/learning_rate", 1e300, "step_state.learning_rate is 1e+300"},
      {"/step_state/learning_rate", -0.1, "step_state.learning_rate is -0.1"},
      {"/step_state/learning_rate", "nan", "step_state.learning_rate is \"nan\", expected a finite number"},
      {"/step_state/bias_correction1", 0, "step_state.bias_correction1 is 0, expected a number above 0"},
      {"/step_state/bias_correction2", 1.5, "step_state.bias_correction2 is 1.5"},
      {"/step_state/bias_correction2", nullptr, "step_state.bias_correction2 is missing"},
      {"/curriculum", nullptr, "curriculum is missing"},
      {"/curriculum", json::array(), "curriculum is [], expected an object"},
      {"/curriculum/points", 2.5, "curriculum.points is 2.5"},
      {"/config_hash", 5, "config_hash is 5, expected a text"},
      {"/config_hash", nullptr, "config_hash is missing"},
      {"/device", 5, "device is 5, expected a text"},
      {"/metrics_bytes", -1, "metrics_bytes is -1"},
      {"/eval_bytes", "x", "eval_bytes is \"x\""},
      {"/interval", 5, "interval is 5, expected an object"},
      {"/interval", "x", "interval is \"x\", expected an object"},
      {"/interval", json::array({5}), "interval[0] is 5, expected 5 to 7 numbers"},
      {"/interval", json::array({{1, 2, 3, 4, "x"}}), "interval[0][4] is \"x\", expected a number"},
      {"/interval", json::array({{21, 2, 3, 4, 5}}), "interval[0][0] is 21, expected a step from 1 to 20"},
      {"/interval", json::array({{1, 2, 3, 4, 5, 6, 1e300}}), "interval[0][6] is 1e+300"},
      {"/interval/finite", 21, "interval.finite is 21, expected an integer from 0 to 20"},
      {"/interval/finite", 0, "interval.loss_sum is 2.5, expected 0"},
      {"/interval/loss_sum", "x", "interval.loss_sum is \"x\""},
      {"/interval/first_skipped", 1, "interval.first_skipped is 1, expected an object"},
      {"/interval/first_skipped", {{"step", 0}, {"tensor", 1}}, "interval.first_skipped.step is 0"},
      {"/interval/first_skipped", {{"step", 1}, {"tensor", -4}}, "interval.first_skipped.tensor is -4"},
  };
  Forgery forgery;
  const std::string good = forgery.state();
  for (const Change& change : changes) {
    forge_value(forgery.path(), change.pointer, change.value);
    forgery.check_refused("state.json", change.part);
    forge(forgery.path(), good);
  }
  for (const char* text : {"[]", "null", "5", "\"x\""}) {
    forge(forgery.path(), text);
    forgery.check_refused("state.json", fmt::format("its content is {}, expected an object", text));
  }
  forge(forgery.path(), "{\"seed\": ");
  forgery.check_refused("state.json", "not JSON");
  forge(forgery.path(), good);
  CHECK_NOTHROW(CheckpointDirectory::verify(forgery.path()));
}

TEST_CASE("checkpoint state: so are values of the manifest") {
  struct Change {
    const char* key;
    json value;
    const char* part;
  };
  const std::vector<Change> changes = {
      {"step", -1, "step is -1"},
      {"step", 20.5, "step is 20.5"},
      {"step", std::uint64_t{1} << 63U, "step is 9223372036854775808"},
      {"step", 19, "another step than the directory's name"},
      {"nonfinite", 5, "nonfinite is 5, expected a text"},
      {"score", 5, "score is 5, expected an object"},
      {"score", {{"value", 1}, {"name", 5}, {"higher_is_better", false}}, "score.name is 5, expected a text"},
      {"score", {{"value", "x"}, {"name", "a"}, {"higher_is_better", false}}, "score.value is \"x\""},
      {"score", {{"value", 1}, {"name", "a"}, {"higher_is_better", 1}}, "score.higher_is_better is 1"},
      {"score", {{"value", 1}, {"name", "a"}}, "score.higher_is_better is missing"},
  };
  Forgery forgery;
  const std::string good = contents(forgery.path() / "manifest.json");
  for (const Change& change : changes) {
    forge(forgery.path(), forgery.state(), [&](json& manifest) { manifest[change.key] = change.value; });
    forgery.check_refused("manifest.json", change.part);
    write_contents(forgery.path() / "manifest.json", good);
  }
  forge(forgery.path(), forgery.state(),
        [](json& manifest) { manifest["files"]["state.json"]["bytes"] = 1ULL << 29U; });
  forgery.check_refused("manifest.json", "files.state.json.bytes is 536870912, expected at most");
  // Under a name of its own, the state tells that the manifest's step is another one.
  const fs::path copy = forgery.path().parent_path() / "copy";
  fs::copy(forgery.path(), copy);
  write_contents(copy / "manifest.json", good);
  CHECK_NOTHROW(CheckpointDirectory::verify(copy));
  forge(copy, forgery.state(), [](json& manifest) { manifest["step"] = 19; });
  CHECK_THROWS_WITH_AS(CheckpointDirectory::verify(copy), doctest::Contains("step_state.step is 20, expected 19"),
                       DataError);
}

TEST_CASE("checkpoint state: what a run can save is accepted") {
  const auto accepted = [](const json& state, std::int64_t step) {
    const json read = json::parse(state.dump());
    check_state(read, step, "state.json");
    return step_state_in(read, step, "state.json");
  };
  CHECK(accepted(example_state(0), 0).updates == 0);
  json state = example_state(20);
  state["step_state"]["learning_rate"] = 0;  // of a warm-up
  state["step_state"]["bias_correction1"] = 1;
  state["step_state"]["updates"] = 15;
  state["step_state"]["skipped"] = 5;
  state["step_state"]["skipped_in_row"] = 5;
  CHECK(accepted(state, 20).skipped_in_row == 5);
  // Frozen: the tenth one is counted, and its step is not.
  state["step_state"]["updates"] = 11;
  state["step_state"]["skipped"] = 10;
  state["step_state"]["skipped_in_row"] = 10;
  CHECK(accepted(state, 20).updates == 11);
  state = example_state(20);
  state["step_state"].erase("skipped_in_row");
  state.erase("interval");
  CHECK(accepted(state, 20).skipped_in_row == 0);
  state.erase("curriculum");  // the first versions had none of them
  CHECK(accepted(state, 20).skipped_in_row == 0);
}

TEST_CASE("checkpoint state: what could not be read again is not saved, and the last one stays") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  checkpoints.save(example(1));
  const auto refused = [&](const CheckpointData& data, const char* part) {
    CHECK_THROWS_WITH_AS(checkpoints.save(data), doctest::Contains(part), EnvironmentError);
    CHECK(contents(directory / "latest") == "step_1\n");
    CHECK_FALSE(fs::exists(directory / "step_2"));
    CHECK(checkpoints.load_latest().value().step == 1);
  };
  CheckpointData data = example(2);
  data.state["more"] = std::string(17U << 20U, 'x');
  refused(data, "state.json would hold 178");
  data = example(2);
  data.score->name = std::string(2U << 20U, 'x');
  refused(data, "manifest.json would hold 209");
  data = example(2);
  data.state["step_state"]["step"] = 3;
  refused(data, "step_state.step is 3, expected 2");
  checkpoints.save(example(2));
  CHECK(checkpoints.load_latest().value().step == 2);
}

TEST_CASE("log interval: its mean is that of all finite losses, also when it was saved between any two") {
  const std::vector<double> losses = {0.1, 1.0 / 3, std::nan(""), 1e3, 3.3, INFINITY, 0.7};
  double sum = 0;
  for (const double loss : losses) sum += std::isfinite(loss) ? loss : 0;
  for (std::size_t cut = 0; cut <= losses.size(); ++cut) {
    LogInterval interval;
    json rows = json::array();  // as earlier versions saved it
    const auto add = [&](LogInterval& to, std::size_t i) {
      MetricsRow row;
      row.step = static_cast<double>(i + 1);
      row.loss = losses[i];
      row.skipped_in_row = std::isfinite(losses[i]) ? 0 : 1;
      row.first_bad = std::isfinite(losses[i]) ? kNothingBad : static_cast<double>(100 + i);
      to.add(row);
      rows.push_back({row.step, row.loss, 1.0, 0.1, 0, row.skipped_in_row, row.first_bad});
    };
    for (std::size_t i = 0; i < cut; ++i) add(interval, i);
    const std::string old = with_finite_numbers(rows).dump();
    for (const std::string& text : {interval.json().dump(), old}) {
      LogInterval resumed = LogInterval::from_json(json::parse(text), 7, "state.json");
      for (std::size_t i = cut; i < losses.size(); ++i) add(resumed, i);
      CHECK(resumed.mean_loss() == sum / 5);
      REQUIRE(resumed.first_skipped().has_value());
      CHECK(resumed.first_skipped()->step == 3);
      CHECK(resumed.first_skipped()->tensor == 102);
    }
  }
  CHECK(std::isnan(LogInterval().mean_loss()));
  CHECK_FALSE(LogInterval::from_json(LogInterval().json(), 0, "state.json").first_skipped().has_value());
}

TEST_CASE("log interval: a checkpoint does not grow with it, and one of the old form is continued bit for bit") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"train.log_every=1000", "checkpoint.every=10", "checkpoint.keep=10"});
  train_in(directory / "whole", config);
  const auto state_of = [&](const char* run, int step) {
    return directory / run / "ckpt" / fmt::format("step_{}", step) / "state.json";
  };
  const auto size_at = [&](int step) { return static_cast<std::int64_t>(fs::file_size(state_of("whole", step))); };
  CHECK(std::abs(size_at(50) - size_at(10)) < 64);

  // The rows that an earlier version would have kept.
  train_in(directory / "lines", tiny_config({"train.log_every=1"}));
  json rows = json::array();
  for (const json& line : json_lines(directory / "lines/metrics.jsonl")) {
    if (line.at("step") > 30) break;
    rows.push_back({line.at("step"), line.at("loss_last"), line.at("grad_norm"), line.at("lr"), 0, 0, -1});
  }
  REQUIRE(rows.size() == 30);
  fs::copy(directory / "whole", directory / "old", fs::copy_options::recursive);
  for (const int step : {40, 50, 60}) fs::remove_all(state_of("old", step).parent_path());
  forge_value(state_of("old", 30).parent_path(), "/interval", rows);
  train_in(directory / "old", config);
  CHECK(lines_without_times(directory / "old/metrics.jsonl") == lines_without_times(directory / "whole/metrics.jsonl"));
  CHECK(json::parse(contents(state_of("old", 40)))["interval"] ==
        json::parse(contents(state_of("whole", 40)))["interval"]);
  CHECK(contents(directory / "old/ckpt/step_60/model.safetensors") ==
        contents(directory / "whole/ckpt/step_60/model.safetensors"));

  // One of the first versions, taken into another run, which saves it again in the form of today.
  const fs::path first = state_of("old", 30).parent_path();
  forge_value(first, "/interval", rows);
  forge_value(first, "/curriculum", nullptr);
  forge_value(first, "/step_state/skipped_in_row", nullptr);
  {
    const NullStream out;
    TinySession tiny(config);
    RunDirectory run(options_in(directory / "other", config));
    Trainer trainer(tiny.session, run, out.file());
    trainer.resume(CheckpointDirectory::load(first), true);
    CHECK(trainer.run().step == 60);
  }
  CHECK(json::parse(contents(state_of("other", 30)))["interval"] ==
        json::parse(contents(state_of("whole", 30)))["interval"]);
  CHECK(contents(directory / "other/ckpt/step_60/model.safetensors") ==
        contents(directory / "whole/ckpt/step_60/model.safetensors"));
}

TEST_CASE("checkpoint state: one that the run's configuration contradicts is passed over, and not taken by --resume") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"checkpoint.every=20", "checkpoint.keep=10"});
  write_contents(directory / "tiny.toml", resolved_toml(config));
  train_in(directory / "whole", config);
  const auto train = [&](const std::string& run, const std::vector<std::string>& more) {
    std::vector<std::string> words = {"train", "tiny.toml", "--device", "cpu", "--threads", "1", "--run-dir", run};
    words.insert(words.end(), more.begin(), more.end());
    return run_graft(directory.path(), words);
  };
  const std::vector<std::pair<const char*, json>> changes = {{"/step_state/learning_rate", 2e-3},
                                                             {"/step_state/learning_rate", 0},
                                                             {"/step_state/bias_correction1", 1e-3},
                                                             {"/step_state/bias_correction2", 1},
                                                             {"/step_state/seed", 6}};
  for (const auto& [pointer, value] : changes) {
    CAPTURE(std::string(pointer));
    const fs::path run = directory / "run";
    fs::remove_all(run);
    fs::copy(directory / "whole", run, fs::copy_options::recursive);
    fs::remove_all(run / "ckpt/step_60");
    const fs::path forged = run / "ckpt/step_40";
    forge_value(forged, pointer, value);
    if (std::string_view(pointer).ends_with("/seed")) forge_value(forged, "/seed", value);
    CHECK_NOTHROW(CheckpointDirectory::verify(forged));  // it may be right in another run
    const Result path = train("other", {"--resume", "run/ckpt/step_40"});
    CHECK(path.code == 4);
    const Result automatic = train("run", {});
    CHECK(automatic.code == 0);
    const std::string field = std::string("step_state.") + (pointer + std::strlen("/step_state/")) + " is ";
    CHECK(automatic.err.find(field) != std::string::npos);
    CHECK(path.err.find(field) != std::string::npos);
    CHECK(automatic.out.find("continuing after step 20") != std::string::npos);
    CHECK(contents(run / "ckpt/step_60/model.safetensors") ==
          contents(directory / "whole/ckpt/step_60/model.safetensors"));
  }
}

}  // namespace
}  // namespace graft::test
