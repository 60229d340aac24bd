#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/step_graph.h"
#include "train/checkpoint.h"
#include "train/checkpoint_lock.h"
#include "train/checkpoint_writer.h"
#include "train/evaluation.h"
#include "train/host_snapshot.h"
#include "train/json_lines.h"
#include "train/log_interval.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/run_directory.h"
#include "train/session.h"
#include "train/stop_rule.h"

namespace graft {

/// How training ended.
struct TrainingOutcome {
  std::int64_t step = 0;
  int signal = 0;        // SIGINT, SIGTERM or SIGHUP if one ended it
  bool stopped = false;  // its StopRule was met
  EvaluationResult evaluation;
  std::uint64_t parameter_hash = 0;
};

/// What several runs in one process have to agree on.
struct TrainerOptions {
  bool guards_signals = true;  // false: the caller has a SignalGuard, which is one for all
  /// Held while graphs are built and captured. Runs that share a GPU share it: opening and closing a session waits for
  /// the whole device, which breaks a capture that is under way in another thread.
  std::mutex* building = nullptr;
  std::function<Context(const Context&)> intercept = {};  // StepParts::intercept; tests inject faults with it
};

/// Throws ConfigError if a checkpoint belongs to another configuration than `config`, NumericsError if it holds numbers
/// that are not finite.
void require_continuable(const CheckpointData& checkpoint, const RunConfig& config);

/// Throws DataError, naming the field, if a checkpoint of this configuration has another seed, learning rate or bias
/// correction than its runs have at that step. One of another configuration is left to require_continuable().
void require_own_state(const CheckpointData& checkpoint, const Experiment& experiment);

/// The newest checkpoint that a run of `experiment` may have saved; none without any. `warn` is told of each that is
/// passed over. Throws like CheckpointDirectory::load_latest().
[[nodiscard]] std::optional<CheckpointData> load_newest_own(const CheckpointDirectory& checkpoints,
                                                            const Experiment& experiment,
                                                            const std::function<void(const std::string&)>& warn);

/// When to warm up, capture, evaluate and save; no arithmetic. One graph for each number of points: the first step of a
/// stage runs eagerly, then the step is captured and replayed.
class Trainer {
 public:
  Trainer(Session& session, RunDirectory& directory, std::FILE* out, TrainerOptions options = {});

  /// Continues from a checkpoint. Throws like require_continuable() and require_own_state(), DataError if it was
  /// elsewhere in the curriculum than this program would be. `branched`: the run may hold later ones, which run() sets
  /// aside before it trains, so that nothing continues from them by mistake, and may not hold this one, which then
  /// becomes one of its own.
  void resume(const CheckpointData& checkpoint, bool branched = false);
  [[nodiscard]] TrainingOutcome run();

 private:
  void step_once(std::int64_t step);
  /// Logs the steps that were asked for first, or all of them; returns how many. Waits until they are done.
  std::int64_t collect(bool drain);
  void log_row(const MetricsRow& row);
  [[nodiscard]] std::string bad_name(std::int64_t first_bad) const;
  /// Ends the run: finds out where the numbers come from, writes numerics.json and throws NumericsError.
  [[noreturn]] void stop_for_numerics(const MetricsRow& row);
  /// Whether the run is decided. A signal may leave the evaluation undone: then a resume starts with it.
  bool evaluate(std::int64_t step);
  /// The same; saves before it passes on what was thrown.
  bool evaluate_or_save(std::int64_t step);
  /// Throws OutOfMemoryError if there is no room for an evaluation.
  void plan_evaluations();
  [[nodiscard]] std::unique_lock<std::mutex> building() const;
  /// Throws EnvironmentError if not even one checkpoint could be written, DataError if this is a start and there are
  /// only branches that were left; says so where there is little room.
  void check_room();
  /// After resume(..., true): makes its checkpoint the newest one of the run.
  std::optional<AbandonedCheckpoints> go_back();
  /// Cuts the logs back to where training begins and opens them. What is lost in them is said.
  void open_logs();
  /// Says if a log has been removed or replaced, and goes on in a new one.
  void reopen_lost_logs();
  /// Starts to save; the device goes on as soon as it has copied its state. A save that comes while another is being
  /// written waits for it: every checkpoint that is asked for is written.
  void start_save(std::int64_t step);
  /// Whether the checkpoint is on the disk. If not, the last good one stays.
  bool save_and_wait(std::int64_t step);
  /// Prints what became of the saves started before.
  void report_saves();
  [[nodiscard]] nlohmann::json state_of_run(std::int64_t step) const;
  [[nodiscard]] std::optional<CheckpointScore> score_at(std::int64_t step) const;
  /// Appends a line and those that an earlier failure left; a full disk only delays them.
  void append(JsonLines& file, std::deque<nlohmann::ordered_json>& waiting, nlohmann::ordered_json line);
  [[nodiscard]] double steps_per_second(std::int64_t step) const;
  [[nodiscard]] double tokens_until(std::int64_t step) const;
  /// Examples that the first `step` steps read.
  [[nodiscard]] std::int64_t examples_until(std::int64_t step) const;
  /// What the terminal shows of an evaluation, of the standard one only its start.
  [[nodiscard]] std::string headline_text(const EvaluationResult& result) const;

  Session& session_;
  RunDirectory& directory_;
  std::FILE* out_;
  TrainerOptions options_;
  StopRule stop_;
  StepParts parts_;
  MetricsRing metrics_;
  Evaluator evaluator_;
  std::vector<std::unique_ptr<Evaluator>> suites_;  // eval.suites
  CheckpointDirectory checkpoints_;
  CheckpointLock checkpoint_lock_;  // from the start, or from the first save that makes the folder
  std::unique_ptr<StepGraph> graph_;
  std::int64_t graph_points_ = 0;
  std::unique_ptr<JsonLines> metrics_file_;
  std::unique_ptr<JsonLines> eval_file_;
  std::deque<nlohmann::ordered_json> metrics_waiting_, eval_waiting_;
  std::string save_problem_;  // why the last save failed
  std::chrono::steady_clock::time_point started_;
  std::unique_ptr<Progress> progress_;
  LogInterval interval_;  // since the last line of metrics.jsonl
  double last_loss_ = 0;
  std::int64_t first_step_ = 0;
  std::int64_t last_saved_ = -1;
  std::int64_t last_evaluated_ = -1;
  bool evaluation_interrupted_ = false;
  bool evaluated_ = false;            // by this process: the graph of evaluations is captured
  std::int64_t last_started_ = -1;    // save
  std::int64_t last_nonfinite_ = -1;  // save
  bool resumed_ = false, branched_ = false;
  bool foreign_ = false;          // the checkpoint that was resumed is not among the run's own
  nlohmann::json resumed_state_;  // its state.json
  std::optional<CheckpointScore> resumed_score_;
  std::string moved_;  // what a resume has to say when the run starts
  EvaluationResult last_evaluation_;
  HostSnapshot snapshot_;
  CheckpointWriter writer_;  // last: its thread uses the above
};

}  // namespace graft
