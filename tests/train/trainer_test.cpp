#include "train/trainer.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/runtime.h"
#include "tests/support/parity.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/tiny_run.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

TEST_CASE("trainer: a run leaves its metrics, evaluations and checkpoints") {
  const TemporaryDirectory directory;
  const RunConfig config =
      tiny_config({"eval.every=25", "checkpoint.every=20", "checkpoint.keep=2", "checkpoint.keep_every=0"});
  const TrainingOutcome outcome = train_in(directory / "run", config);
  CHECK(outcome.step == 60);
  CHECK(outcome.signal == 0);
  CHECK(outcome.evaluation.step == 60);
  CHECK(outcome.parameter_hash != 0);

  std::vector<std::int64_t> expected;
  for (std::int64_t step = 4; step <= 60; step += 4) expected.push_back(step);
  CHECK(steps_of(directory / "run/metrics.jsonl") == expected);
  CHECK(steps_of(directory / "run/eval.jsonl") == std::vector<std::int64_t>{25, 50, 60});
  CHECK(std::filesystem::exists(directory / "run/ckpt/step_40"));
  CHECK(std::filesystem::exists(directory / "run/ckpt/step_60/manifest.json"));
  CHECK_FALSE(std::filesystem::exists(directory / "run/ckpt/step_20"));
  CHECK(contents(directory / "run/ckpt/latest").starts_with("step_60"));

  double tokens = 0;
  std::int64_t step = 0;
  for (const nlohmann::json& line : json_lines(directory / "run/metrics.jsonl")) {
    CAPTURE(line.dump());
    for (; step < line.at("step").get<std::int64_t>(); ++step) {
      tokens += 2.0 * 8 * static_cast<double>(std::min<std::int64_t>(2 + step / 13, 5));
    }
    CHECK(line.at("examples").get<std::int64_t>() == 8 * step);
    CHECK(line.at("tokens").get<double>() == tokens);
    CHECK(line.at("points").get<std::int64_t>() == std::min<std::int64_t>(2 + (step - 1) / 13, 5));
    CHECK(line.at("dims").get<std::int64_t>() == std::min<std::int64_t>(1 + (step - 1) / 7, 3));
    CHECK(line.at("loss").get<double>() > 0);
    CHECK(line.at("grad_norm").get<double>() > 0);
    CHECK(line.at("lr").get<double>() > 0);
    CHECK(line.at("skipped").get<double>() == 0);
    CHECK(line.contains("steps_per_s"));
  }
}

TEST_CASE("trainer: the loss of a line is the mean over its interval") {
  const TemporaryDirectory directory;
  train_in(directory / "each", tiny_config({"train.log_every=1"}));
  train_in(directory / "five", tiny_config({"train.log_every=5"}));
  const std::vector<nlohmann::json> each = json_lines(directory / "each/metrics.jsonl");
  const std::vector<nlohmann::json> five = json_lines(directory / "five/metrics.jsonl");
  REQUIRE(each.size() == 60);
  REQUIRE(five.size() == 12);
  for (std::size_t i = 0; i < 12; ++i) {
    double sum = 0;
    for (std::size_t j = 0; j < 5; ++j) sum += each[5 * i + j].at("loss").get<double>();
    CHECK(five[i].at("loss").get<double>() == sum / 5);
    CHECK(five[i].at("loss_last") == each[5 * i + 4].at("loss"));
    CHECK(five[i].at("grad_norm") == each[5 * i + 4].at("grad_norm"));
  }
}

TEST_CASE("trainer: capture, threads, evaluations and checkpoints leave no trace in the numbers") {
  const TemporaryDirectory directory;
  const TrainingOutcome plain = train_in(directory / "plain", tiny_config());
  const auto lines = lines_without_times(directory / "plain/metrics.jsonl");
  const auto check = [&](const char* name, const std::vector<std::string>& overrides, int threads = 1) {
    CAPTURE(name);
    const TrainingOutcome other = train_in(directory / name, tiny_config(overrides), nullptr, Backend::Cpu, threads);
    CHECK(other.parameter_hash == plain.parameter_hash);
    CHECK(lines_without_times(directory / name / "metrics.jsonl") == lines);
    CHECK(other.evaluation.positions.mean == plain.evaluation.positions.mean);
  };
  check("again", {});
  check("eager", {"train.capture=false"});
  check("evaluated", {"eval.every=3", "checkpoint.every=7"});
  check("two threads", {}, 2);
  check("three threads", {}, 3);
}

TEST_CASE("trainer: CUDA: capture, evaluations and checkpoints leave no trace in the numbers") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "tf32", "bf16"}) {
    CAPTURE(precision);
    const TemporaryDirectory directory;
    const std::string mode = std::string("train.precision=") + precision;
    const TrainingOutcome plain = train_in(directory / "plain", tiny_config({mode}), nullptr, Backend::Cuda);
    const TrainingOutcome eager =
        train_in(directory / "eager", tiny_config({mode, "train.capture=false"}), nullptr, Backend::Cuda);
    const TrainingOutcome busy =
        train_in(directory / "busy", tiny_config({mode, "eval.every=3", "checkpoint.every=7"}), nullptr, Backend::Cuda);
    CHECK(eager.parameter_hash == plain.parameter_hash);
    CHECK(busy.parameter_hash == plain.parameter_hash);
    CHECK(lines_without_times(directory / "busy/metrics.jsonl") ==
          lines_without_times(directory / "plain/metrics.jsonl"));
    CHECK(busy.evaluation.positions.mean == plain.evaluation.positions.mean);
  }
}

TEST_CASE("trainer: CUDA: the run is the CPU's up to rounding") {
  if (skip_cuda()) return;
  const TemporaryDirectory directory;
  train_in(directory / "cpu", tiny_config());
  train_in(directory / "gpu", tiny_config(), nullptr, Backend::Cuda);
  const std::vector<nlohmann::json> cpu = json_lines(directory / "cpu/metrics.jsonl");
  const std::vector<nlohmann::json> gpu = json_lines(directory / "gpu/metrics.jsonl");
  REQUIRE(cpu.size() == gpu.size());
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    // Sixty steps of Adam amplify a rounding of 1e-7; the data and schedule of both must be the same.
    CHECK(gpu[i].at("loss").get<double>() == doctest::Approx(cpu[i].at("loss").get<double>()).epsilon(1e-3));
    CHECK(gpu[i].at("lr").get<double>() == doctest::Approx(cpu[i].at("lr").get<double>()).epsilon(1e-12));
  }
}

TEST_CASE("trainer: ten steps in a row without finite numbers end the run; their updates were left out") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"train.log_every=1"});
  TinySession tiny(config);
  tiny.session.initialize();
  ParameterStore& params = tiny.experiment.params;
  const ParameterStore::Entry& entry = *params.find("read_in.weight");
  std::vector<double> weights = params.read(tiny.session.ctx(), entry, ParameterStore::Buffer::Weights);
  weights[0] = std::nan("");
  params.write(tiny.session.ctx(), entry, ParameterStore::Buffer::Weights, weights);
  const std::uint64_t before = params.hash(tiny.session.ctx());

  RunDirectory run(options_in(directory / "run", config));
  const NullStream out;
  Trainer trainer(tiny.session, run, out.file());
  CHECK_THROWS_WITH_AS(static_cast<void>(trainer.run()), doctest::Contains("optimizer.lr"), NumericsError);
  CHECK(params.hash(tiny.session.ctx()) == before);
  const std::vector<nlohmann::json> lines = json_lines(directory / "run/metrics.jsonl");
  REQUIRE(lines.size() == 9);
  CHECK(lines[0].at("loss") == "nan");
  CHECK(lines[8].at("skipped").get<double>() == 9);
}

TEST_CASE("trainer: a finished run that is started again does nothing twice") {
  const TemporaryDirectory directory;
  const TrainingOutcome first = train_in(directory / "run", tiny_config());
  const std::string metrics = contents(directory / "run/metrics.jsonl");
  const std::string evaluations = contents(directory / "run/eval.jsonl");
  const TrainingOutcome second = train_in(directory / "run", tiny_config());
  CHECK(second.step == 60);
  CHECK(second.parameter_hash == first.parameter_hash);
  CHECK(second.evaluation.positions.mean == first.evaluation.positions.mean);
  CHECK(contents(directory / "run/metrics.jsonl") == metrics);
  CHECK(contents(directory / "run/eval.jsonl") == evaluations);
}

TEST_CASE("trainer: a run whose evaluation has no room does not start") {
  const TemporaryDirectory directory;
  // One of its tensors alone, [batch, 10 tokens, width], is larger than this machine's memory; a step is not.
  constexpr std::size_t kMostPrompts = std::size_t{1} << 24U;
  const std::size_t memory = open_runtime({Backend::Cpu, 0}, {1})->memory_info().total;
  const std::size_t width = std::max<std::size_t>(memory / (kMostPrompts * 10 * sizeof(float)) / 2 * 2 + 2, 16);
  const RunConfig config =
      tiny_config({fmt::format("eval.prompts={}", kMostPrompts), fmt::format("eval.batch={}", kMostPrompts),
                   fmt::format("model.width={}", width)});
  TinySession tiny(config);
  tiny.session.initialize();
  RunDirectory run(options_in(directory / "run", config));
  const NullStream out;
  Trainer trainer(tiny.session, run, out.file());
  CHECK_THROWS_WITH_AS(static_cast<void>(trainer.run()), doctest::Contains("lower it"), OutOfMemoryError);
  CHECK_FALSE(fs::exists(directory / "run/metrics.jsonl"));
  CHECK_FALSE(fs::exists(directory / "run/ckpt/latest"));
}

TEST_CASE("trainer: a run is saved before the error of an evaluation ends it") {
  const TemporaryDirectory directory;
  const std::vector<std::string> rule = {"eval.every=10", "eval.stop_below=1e9", "eval.stop_from=1"};
  const RunConfig config = tiny_config(rule);
  {
    TinySession tiny(config);
    tiny.session.initialize();
    RunDirectory run(options_in(directory / "run", config));
    const NullStream out;
    Trainer trainer(tiny.session, run, out.file());
    fs::rename(run.path() / "run.json", directory / "run.json");
    fs::create_directories(run.path() / "run.json/in the way");  // of what the decided run records
    CHECK_THROWS_AS(static_cast<void>(trainer.run()), EnvironmentError);
  }
  CHECK(fs::exists(directory / "run/ckpt/step_10/manifest.json"));
  fs::remove_all(directory / "run/run.json");
  fs::rename(directory / "run.json", directory / "run/run.json");
  const TrainingOutcome outcome = train_in(directory / "run", config);
  CHECK(outcome.step == 10);
  CHECK(outcome.stopped);
  CHECK(outcome.parameter_hash == train_in(directory / "whole", config).parameter_hash);
}

TEST_CASE("trainer: a run of one step is complete") {
  const TemporaryDirectory directory;
  const RunConfig one = tiny_config({"train.steps=1"});
  const TrainingOutcome outcome = train_in(directory / "run", one);
  CHECK(outcome.step == 1);
  CHECK(steps_of(directory / "run/metrics.jsonl") == std::vector<std::int64_t>{1});
  CHECK(steps_of(directory / "run/eval.jsonl") == std::vector<std::int64_t>{1});
}

}  // namespace
}  // namespace graft::test
