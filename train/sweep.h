#pragma once
// A grid of runs: one configuration, and the keys that differ from run to run.

#include <cstdint>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/config_file.h"
#include "train/stop_rule.h"

namespace graft {

/// More are a mistake: nobody has the time.
inline constexpr std::size_t kMostSweepPoints = 10000;

/// One run of a sweep.
struct SweepPoint {
  std::string name;                    // "preset=mamba+width=64+seed=0": the directory below the sweep's
  std::string hash;                    // config_hash8() of its configuration
  std::int64_t steps = 0;              // train.steps
  StopRule stop;                       // what may end it earlier
  std::vector<RawOverride> overrides;  // what makes its configuration of the base
};

/// A sweep's file, read and checked:
///
///   [sweep]
///   name = "parity"                          # default: the file's name
///   base = "sparse_parity.toml"              # a configuration; relative to this file
///   set = {"train.steps" = 20_000}           # for all runs
///   [[sweep.grid]]                           # every combination of the values of one table is a run;
///   model.preset = ["mamba", "transformer"]  # several tables follow each other
///   run.seed = [0, 1, 2]
///   model.heads = 8                          # one value for the runs of this table, not part of their names
///   [sweep.stop]                             # eval.stop_above (or below), eval.stop_from, eval.stop_to
///   above = 0.95
///   first = 40
///   last = 139
///
/// Keys may be quoted ("model.width") or not. Runs are in the order of the file: the last key changes fastest.
struct Sweep {
  std::string name;
  std::string path;       // as the user named it
  std::string base;       // the configuration's file
  std::string base_text;  // and what it holds
  std::vector<SweepPoint> points;

  [[nodiscard]] RunConfig config(const SweepPoint& point) const;
};

/// Reads a sweep and checks every run's configuration; `overrides` are -o arguments, for all runs, and so not for keys
/// by which the grid tells them apart. Two runs that differ in nothing but their names are a mistake too. Throws
/// ConfigError with every mistake and its place in the sweep's file or the base, like load_config().
[[nodiscard]] Sweep load_sweep(const std::string& path, const std::vector<std::string>& overrides = {});

}  // namespace graft
