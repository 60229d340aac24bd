#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/device.h"
#include "engine/step_graph.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/experiment.h"
#include "train/run_directory.h"
#include "train/run_record.h"
#include "train/session.h"
#include "train/step.h"
#include "train/trainer.h"

namespace graft::test {

/// A run of 60 steps in which everything changes that can: the learning rate rises and falls, prompts grow at steps
/// 13, 26 and 39, dimensions at 7 and 14.
inline constexpr const char* kTinyConfig = R"([run]
name = "tiny"
seed = 5
[task]
name = "linear_regression"
dim = 3
points = 5
[task.curriculum]
enabled = true
dims_start = 1
dims_increment = 1
dims_interval = 7
points_start = 2
points_increment = 1
points_interval = 13
[model]
preset = "transformer"
width = 16
layers = 2
heads = 2
[optimizer]
name = "adamw"
lr = 3e-3
weight_decay = 0.01
clip = 1.0
[schedule]
name = "cosine"
warmup = 6
total = 60
final = 0.1
[train]
batch = 8
steps = 60
log_every = 4
[eval]
every = 0
prompts = 24
batch = 8
bootstrap = 20
[checkpoint]
every = 0
)";

[[nodiscard]] inline RunConfig tiny_config(const std::vector<std::string>& overrides = {}) {
  return parse_config(kTinyConfig, "tiny.toml", overrides);
}

/// A run of 5 steps of one Mamba block on any task. Some tasks' points or lengths must be given to be small.
inline constexpr const char* kTinyTaskConfig = R"([model]
preset = "mamba"
width = 16
layers = 1
[train]
batch = 4
steps = 5
log_every = 1
[eval]
every = 0
prompts = 16
batch = 8
bootstrap = 4
)";

[[nodiscard]] inline RunConfig tiny_task_config(const std::string& task, std::vector<std::string> overrides = {}) {
  overrides.insert(overrides.begin(), "task.name=" + task);
  return parse_config(kTinyTaskConfig, task + ".toml", overrides);
}

/// An experiment on a device.
struct TinySession {
  explicit TinySession(const RunConfig& config, Backend backend = Backend::Cpu, int threads = 1)
      : experiment(config), session(experiment, {backend, 0}, {threads}, true) {}
  Experiment experiment;
  Session session;
};

/// Hash of the weights after some steps at full length.
[[nodiscard]] inline std::uint64_t trained_hash(Backend backend, const RunConfig& config, bool captured,
                                                int steps = 30) {
  TinySession tiny(config, backend);
  const Context& ctx = tiny.session.ctx();
  tiny.session.initialize();
  MetricsRing metrics(ctx, tiny.session.runtime(), 64);
  const StepParts parts = step_parts(tiny.experiment, metrics);
  const std::int64_t points = tiny.experiment.task->final_points();
  StepGraph graph(ctx, tiny.session.range(), "training step",
                  [parts, points](const Context& c) { train_step(c, parts, points); });
  graph.plan();
  graph.run_eager();
  if (captured) graph.capture();
  for (int step = 1; step < steps; ++step) {
    if (captured) {
      graph.replay();
    } else {
      graph.run_eager();
    }
  }
  return tiny.experiment.params.hash(ctx);
}

/// A stream whose text nobody reads.
class NullStream {
 public:
  NullStream() : file_(std::fopen("/dev/null", "w")) {}
  ~NullStream() { std::fclose(file_); }
  NullStream(const NullStream&) = delete;
  NullStream& operator=(const NullStream&) = delete;
  [[nodiscard]] std::FILE* file() const { return file_; }

 private:
  std::FILE* file_;
};

/// What `graft train --run-dir DIRECTORY` makes a run's directory from.
[[nodiscard]] inline RunOptions options_in(const std::filesystem::path& directory, const RunConfig& config) {
  RunOptions options = run_options(config);
  options.directory = directory;
  return options;
}

/// Trains in `directory` as `graft train --run-dir` does: continues what is there. `out` gets what a terminal would.
inline TrainingOutcome train_in(const std::filesystem::path& directory, const RunConfig& config,
                                std::FILE* out = nullptr, Backend backend = Backend::Cpu, int threads = 1) {
  const NullStream null;
  TinySession tiny(config, backend, threads);
  RunDirectory run(options_in(directory, config));
  Trainer trainer(tiny.session, run, out == nullptr ? null.file() : out);
  if (const std::optional<CheckpointData> checkpoint = CheckpointDirectory(run.checkpoints()).load_latest()) {
    trainer.resume(*checkpoint);
  } else {
    tiny.session.initialize();
  }
  const TrainingOutcome outcome = trainer.run();
  run.finish(0);
  return outcome;
}

/// Lines of a file of JSON objects.
inline std::vector<nlohmann::json> json_lines(const std::filesystem::path& path) {
  std::vector<nlohmann::json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// The same without what a clock wrote: two equal runs have equal ones.
inline std::vector<nlohmann::json> lines_without_times(const std::filesystem::path& path) {
  std::vector<nlohmann::json> lines = json_lines(path);
  for (nlohmann::json& line : lines) {
    line.erase("steps_per_s");
    line.erase("seconds");
  }
  return lines;
}

/// "step" of every line.
inline std::vector<std::int64_t> steps_of(const std::filesystem::path& path) {
  std::vector<std::int64_t> steps;
  for (const nlohmann::json& line : json_lines(path)) steps.push_back(line.at("step").get<std::int64_t>());
  return steps;
}

}  // namespace graft::test
