#pragma once
// A run's configuration: TOML and -o arguments in, plain structs out.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/device.h"
#include "engine/settings.h"

namespace graft {

struct RunTable {
  std::string name;
  std::uint64_t seed = 0;
  bool deterministic = true;
};

struct ModelTable {
  std::string preset;   // one of these two is
  std::string pattern;  // empty
  std::int64_t width = 256;
  std::int64_t layers = 12;
  std::int64_t heads = 8;
  std::int64_t state = 16;
  std::int64_t mlp_ratio = 4;
  std::optional<bool> positions;  // empty: the preset or the pattern's reader decides
};

struct OptimizerTable {
  std::string name = "adam";
  double lr = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double clip = 10;  // 0: off
};

struct ScheduleTable {
  std::string name = "constant";
  std::int64_t warmup = 0;
  std::int64_t total = 500000;
  double final = 0;  // a fraction of the learning rate
  std::int64_t every = 1;
};

struct TrainTable {
  std::int64_t batch = 64;
  std::int64_t steps = 500000;
  Precision precision = Precision::Fp32;
  bool capture = true;
  bool recompute = false;
  std::int64_t log_every = 100;
};

struct EvalTable {
  std::int64_t every = 10000;  // 0: only at the end
  std::int64_t prompts = 1280;
  std::int64_t batch = 64;
  std::int64_t bootstrap = 1000;
  std::vector<std::string> suites;               // of the task, besides the standard one
  std::vector<std::string> baselines = {"all"};  // "all", or names, or none
  std::int64_t baseline_prompts = 128;           // of expensive baselines
  std::int64_t baseline_positions = 16;
  std::optional<double> stop_above, stop_below;  // what ends the run early: see StopRule
  std::optional<std::int64_t> stop_from, stop_to;
};

struct CheckpointTable {
  std::int64_t every = 10000;  // 0: only at the end
  std::int64_t keep = 3;
  std::int64_t keep_every = 100000;  // 0: none is kept for good
};

struct DistTable {
  std::int64_t ranks = 1;
};

struct RunConfig {
  RunTable run;
  std::string task;  // task.name; the task's own keys are read from `settings`
  ModelTable model;
  OptimizerTable optimizer;
  ScheduleTable schedule;
  TrainTable train;
  EvalTable eval;
  CheckpointTable checkpoint;
  DistTable dist;
  Settings settings;  // every value, those above included, with where it came from
  std::string path;   // the file as the user named it
  std::string text;   // the file as it was read, for a copy in the run's directory

  /// The preset or, for blocks by hand, the pattern.
  [[nodiscard]] const std::string& model_name() const { return model.preset.empty() ? model.pattern : model.preset; }
};

/// Reads and checks a configuration; `overrides` are -o arguments, "optimizer.lr=3e-4". Text values need no quotes
/// there, and of two overrides of a key the later one counts.
/// Throws ConfigError. Its message has one paragraph for each mistake,
///   FILE:LINE:COLUMN: KEY: what came, what was expected; did you mean `...`?
///     LINE | the source line
///          |        ^
/// and ends with a summary on a line of its own. An override stands as "-o key=value: ...".
[[nodiscard]] RunConfig load_config(const std::string& path, const std::vector<std::string>& overrides = {});

/// The same for text in memory; `label` stands for the file's name in messages and names a run without a name.
[[nodiscard]] RunConfig parse_config(std::string_view text, const std::string& label,
                                     const std::vector<std::string>& overrides = {});

struct RawOverride;

/// The same with overrides that come from elsewhere than the command line: the file of a sweep, which their positions
/// name.
[[nodiscard]] RunConfig parse_config_with(std::string_view text, const std::string& label,
                                          const std::vector<RawOverride>& overrides);

/// The configuration in canonical form: every key with its value, tables and keys sorted, numbers in the shortest form
/// that reads back to the same bits. Reading it again gives the same configuration and the same text.
[[nodiscard]] std::string resolved_toml(const RunConfig& config);

/// What decides a run's numbers: the canonical form without run.name, train.steps, train.recompute, eval.*,
/// checkpoint.* and dist.*, which may change on a resume. With a constant learning rate, schedule.total, schedule.final
/// and schedule.every do nothing and are left out too; otherwise a changed schedule.total is another run, even where it
/// comes from train.steps.
[[nodiscard]] std::string identity_toml(const RunConfig& config);

/// First 8 hexadecimal digits of the XXH3-64 of identity_toml(), for names of directories.
[[nodiscard]] std::string config_hash8(const RunConfig& config);

/// Where two configurations' identities differ, for messages: "optimizer.lr: 0.001, now 0.0001".
[[nodiscard]] std::vector<std::string> identity_differences(const RunConfig& before, const RunConfig& now);
/// The same for two texts of resolved_toml(), one of them perhaps written by a program whose keys were others.
[[nodiscard]] std::vector<std::string> identity_differences(std::string_view before, std::string_view now);

}  // namespace graft
