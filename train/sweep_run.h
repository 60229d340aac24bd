#pragma once
// Running the runs of a sweep, and what is known of them from their directories.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "engine/error.h"
#include "train/sweep.h"
#include "train/trainer.h"

namespace graft {

enum class RunState : std::uint8_t {
  NotStarted,
  Running,      // its process is alive
  Unfinished,   // interrupted or killed; goes on from its last checkpoint
  Failed,       // ended with an error, or cannot be run: its place is taken, or a file of it unreadable
  Done,         // all steps, or decided by its StopRule
  OtherConfig,  // the directory holds a run of another configuration
};

/// "done", "not started", ...
[[nodiscard]] const char* name_of(RunState state);

/// What a run's directory tells; nothing is changed there.
struct RunStatus {
  RunState state = RunState::NotStarted;
  std::int64_t step = 0;                  // that is known to be done
  double seconds_left = 0;                // at the latest speed; NaN if unknown
  std::optional<std::int64_t> evaluated;  // step of the last evaluation; the numbers below are its
  double mean = 0;                        // the evaluation's headline
  double stop_value = 0;                  // of the point's StopRule
  std::string message;                    // what is wrong, on one line; empty: nothing
};

/// <root>/<sweep>/<point>.
[[nodiscard]] std::filesystem::path directory_of(const Sweep& sweep, const SweepPoint& point,
                                                 const std::filesystem::path& root);

/// A run counts as done if it ended without error, and its last evaluation is of its last step or decided it: with more
/// steps, or a stricter rule, it goes on. What cannot be read is that run's failure: nothing is thrown for it, and
/// nothing waited for.
[[nodiscard]] RunStatus status_of(const SweepPoint& point, const std::filesystem::path& directory);

struct SweepOptions {
  std::filesystem::path root = "runs";
  std::string device = "auto";
  int jobs = 1;     // runs at once
  int threads = 0;  // CPU threads, shared by the jobs; 0: all
  std::FILE* out = stdout;
};

/// How one run of a sweep went.
struct SweepOutcome {
  const SweepPoint* point = nullptr;
  TrainingOutcome training;
  ExitCode code = ExitCode::kDone;
  std::string error;  // empty: none
};

struct SweepReport {
  std::vector<SweepOutcome> outcomes;  // of the runs that were started, in the sweep's order
  std::size_t done_before = 0;
  int signal = 0;  // SIGINT, SIGTERM or SIGHUP, which ended all runs after saving
};

/// Runs what is not done, `jobs` at once as threads of this process: each has its own session (stream, memory, graphs,
/// random state), so its numbers are those it has alone; separate processes would only take turns on a GPU. An error
/// ends its run and no other. Progress goes to `out`, whole lines with the run's name in front.
[[nodiscard]] SweepReport run_sweep(const Sweep& sweep, const SweepOptions& options);

}  // namespace graft
