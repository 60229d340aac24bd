// A run that stops anywhere and goes on is the run that never stopped.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/error.h"
#include "engine/philox.h"
#include "tests/support/parity.h"
#include "tests/support/share.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/watched_stream.h"
#include "tests/train/tiny_run.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

/// Trains until `stop` steps are done.
TrainingOutcome interrupt_at(const fs::path& directory, const RunConfig& config, std::int64_t stop,
                             Backend backend = Backend::Cpu) {
  const WatchedStream out([text = fmt::format("eval at step {}:", stop), stop](std::string_view line) {
    if (line.find(text) != std::string_view::npos) std::raise(stop % 2 == 0 ? SIGTERM : SIGINT);
  });
  return train_in(directory, config, out.file(), backend);
}

void check_same_run(const fs::path& a, const fs::path& b) {
  CHECK(lines_without_times(a / "metrics.jsonl") == lines_without_times(b / "metrics.jsonl"));
  CHECK(lines_without_times(a / "eval.jsonl") == lines_without_times(b / "eval.jsonl"));
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    CHECK(contents(a / "ckpt/step_60" / file) == contents(b / "ckpt/step_60" / file));
  }
}

/// Steps to stop at: the first and last ones, beside changes of the curriculum, and random ones.
std::vector<std::int64_t> stops() {
  std::vector<std::int64_t> steps = {1, 2, 13, 14, 26, 59};
  const Draw draw{17, RandomDomain::Bootstrap, 0, 0};
  for (std::uint32_t i = 0; i < 4; ++i) steps.push_back(1 + draw.below(59, 0, i));
  return steps;
}

void check_resume(Backend backend, const char* precision, const std::vector<std::int64_t>& steps) {
  CAPTURE(precision);
  const TemporaryDirectory directory;
  const RunConfig config =
      tiny_config({fmt::format("train.precision={}", precision), "eval.every=1", "eval.prompts=8"});
  std::optional<TrainingOutcome> whole;
  for (const std::int64_t stop : steps) {
    CAPTURE(stop);
    if (!in_share(fmt::format("{} stopped after {}", precision, stop))) continue;
    if (!whole) whole = train_in(directory / "whole", config, nullptr, backend);
    const fs::path run = directory / fmt::format("stop_{}", stop);
    const TrainingOutcome first = interrupt_at(run, config, stop, backend);
    REQUIRE(first.step == stop);
    CHECK(first.signal == (stop % 2 == 0 ? SIGTERM : SIGINT));
    const TrainingOutcome second = train_in(run, config, nullptr, backend);
    CHECK(second.step == 60);
    CHECK(second.parameter_hash == whole->parameter_hash);
    check_same_run(directory / "whole", run);
    fs::remove_all(run);
  }
}

TEST_CASE("resume: a run interrupted at any step ends like one that was not") {
  check_resume(Backend::Cpu, "fp32", stops());
  check_resume(Backend::Cpu, "bf16", {20, 33});
  check_resume(Backend::Cpu, "fp64", {20, 33});
}

TEST_CASE("resume: CUDA: a run interrupted at any step ends like one that was not") {
  if (skip_cuda()) return;
  check_resume(Backend::Cuda, "fp32", {1, 14, 33});
  check_resume(Backend::Cuda, "tf32", {20});
  check_resume(Backend::Cuda, "bf16", {20, 33});
}

TEST_CASE("resume: interrupted again and again") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"eval.every=1", "eval.prompts=8", "train.log_every=7"});
  const TrainingOutcome whole = train_in(directory / "whole", config);
  for (const std::int64_t stop : {3, 4, 20, 41, 58}) {
    CHECK(interrupt_at(directory / "run", config, stop).step == stop);
  }
  CHECK(train_in(directory / "run", config).parameter_hash == whole.parameter_hash);
  check_same_run(directory / "whole", directory / "run");
}

TEST_CASE("resume: a killed run goes back to its last checkpoint, and no step appears twice") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"eval.every=6", "checkpoint.every=10"});
  const TrainingOutcome whole = train_in(directory / "whole", config);
  // As if killed at the end: files reach further than the newest checkpoint that is left, and end in part of a line.
  fs::copy(directory / "whole", directory / "run", fs::copy_options::recursive);
  for (const char* name : {"step_60", "step_50"}) fs::remove_all(directory / "run/ckpt" / name);
  write_contents(directory / "run/ckpt/latest", "step_50\n");
  write_contents(directory / "run/metrics.jsonl", contents(directory / "run/metrics.jsonl") + "{\"step\": 6");
  const TrainingOutcome resumed = train_in(directory / "run", config);
  CHECK(resumed.parameter_hash == whole.parameter_hash);
  check_same_run(directory / "whole", directory / "run");
}

TEST_CASE("resume: a longer run continues a shorter one") {
  const TemporaryDirectory directory;
  const RunConfig whole_config = tiny_config();
  const TrainingOutcome whole = train_in(directory / "whole", whole_config);
  CHECK(train_in(directory / "run", tiny_config({"train.steps=30"})).step == 30);
  CHECK(train_in(directory / "run", whole_config).parameter_hash == whole.parameter_hash);
  const std::vector<std::int64_t> steps = steps_of(directory / "run/metrics.jsonl");
  for (std::size_t i = 1; i < steps.size(); ++i) CHECK(steps[i] > steps[i - 1]);
  CHECK(steps.back() == 60);
  CHECK(steps_of(directory / "run/eval.jsonl") == std::vector<std::int64_t>{30, 60});
}

TEST_CASE("resume: another device rounds differently and says so, another number of threads does not") {
  const TemporaryDirectory directory;
  const std::uint64_t whole = train_in(directory / "whole", tiny_config()).parameter_hash;
  train_in(directory / "run", tiny_config({"train.steps=20", "schedule.total=60"}));
  const auto resumed = [&](const char* device) {
    const fs::path copy = directory / "copy";
    fs::remove_all(copy);
    fs::copy(directory / "run", copy, fs::copy_options::recursive);
    TinySession tiny(tiny_config(), Backend::Cpu, 2);
    RunDirectory run(options_in(copy, tiny_config()));
    std::optional<CheckpointData> checkpoint = CheckpointDirectory(run.checkpoints()).load_latest();
    REQUIRE(checkpoint.has_value());
    CHECK(checkpoint->state.at("device").get<std::string>().ends_with(" (1 threads)"));
    if (device != nullptr) checkpoint->state["device"] = device;
    std::FILE* const out = std::fopen((directory / "out").c_str(), "w");
    REQUIRE(out != nullptr);
    {
      Trainer trainer(tiny.session, run, out);
      trainer.resume(*checkpoint);
      CHECK(trainer.run().parameter_hash == whole);
    }
    std::fclose(out);
    return contents(directory / "out");
  };
  CHECK(resumed(nullptr).find("rounding") == std::string::npos);
  CHECK(
      resumed("An older one (2 threads)").find("what ran on An older one (2 threads): numbers agree up to rounding") !=
      std::string::npos);
}

TEST_CASE("resume: a checkpoint of another model is refused by name") {
  TinySession small(tiny_config());
  small.session.initialize();
  const CheckpointData data = small.session.snapshot({});
  TinySession wide(tiny_config({"model.width=32"}));
  CHECK_THROWS_WITH_AS(wide.session.restore(data, true),
                       doctest::Contains("read_in.weight is [16, 3] float32, expected [32, 3]"), DataError);
  TinySession deep(tiny_config({"model.layers=3"}));
  CHECK_THROWS_WITH_AS(deep.session.restore(data, true), doctest::Contains("blocks.4."), DataError);
  CheckpointData without_state = data;
  without_state.state = nlohmann::json::object();
  CHECK_THROWS_WITH_AS(small.session.restore(without_state, true),
                       doctest::Contains("state.json: step_state is missing"), DataError);
  CHECK_NOTHROW(small.session.restore(without_state, false));
}

TEST_CASE("resume: a checkpoint moves between precisions, and carries every parameter") {
  TinySession wide(tiny_config({"train.precision=fp64"}));
  wide.session.initialize();
  const CheckpointData data = wide.session.snapshot({});
  CHECK(data.model.size() == wide.experiment.params.entries().size());
  CHECK(data.optimizer.size() == 2 * data.model.size());
  TinySession single(tiny_config());
  single.session.restore(data, true);
  const CheckpointData back = single.session.snapshot({});
  for (std::size_t i = 0; i < data.model.size(); ++i) {
    CHECK(back.model[i].name == data.model[i].name);
    CHECK(back.model[i].shape == data.model[i].shape);
    CHECK(back.model[i].dtype == DType::F32);
  }
}

}  // namespace
}  // namespace graft::test
