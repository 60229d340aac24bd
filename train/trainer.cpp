#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>

#include "engine/error.h"
#include "engine/stream.h"
#include "engine/version.h"
#include "ops/schedule.h"
#include "train/checkpoint_files.h"
#include "train/checkpoint_state.h"
#include "train/file_io.h"
#include "train/flops.h"
#include "train/numerics.h"
#include "train/signals.h"

namespace graft {
namespace {

constexpr std::int64_t kRingCapacity = 4096;
constexpr std::int64_t kMostStepsInFlight = 1024;
constexpr double kPollSeconds = 0.1;
// Of state.json: lengths of the logs when a checkpoint was saved.
constexpr const char* kMetricsBytes = "metrics_bytes";
constexpr const char* kEvaluationBytes = "eval_bytes";
constexpr const char* kCurriculum = "curriculum";
constexpr const char* kInterval = "interval";

using Clock = std::chrono::steady_clock;

/// How many steps the host may queue from one poll to the next: what the device does in kPollSeconds. Each poll waits
/// for the steps that the one before it asked for, so that the device always has some left to do, and a signal never
/// waits for more than two polls' worth of them.
class QueueDepth {
 public:
  [[nodiscard]] std::int64_t steps() const { return steps_; }
  /// Time until now was not spent on steps alone.
  void restart() { since_ = Clock::now(); }
  /// So many steps were found to be done.
  void done(std::int64_t count) {
    const double seconds = std::chrono::duration<double>(Clock::now() - since_).count();
    restart();
    if (count == 0) return;
    const double most = std::min(static_cast<double>(2 * steps_), static_cast<double>(kMostStepsInFlight));
    steps_ = static_cast<std::int64_t>(std::clamp(static_cast<double>(count) * kPollSeconds / seconds, 1.0, most));
  }

 private:
  std::int64_t steps_ = 1;
  Clock::time_point since_ = Clock::now();
};

/// A device's name without " (2 threads)", which changes no bit.
std::string_view without_threads(std::string_view device) {
  return device.ends_with(" threads)") ? device.substr(0, device.rfind(" (")) : device;
}

}  // namespace

Trainer::Trainer(Session& session, RunDirectory& directory, std::FILE* out, TrainerOptions options)
    : session_(session),
      directory_(directory),
      out_(out),
      options_(std::move(options)),
      stop_(StopRule::of(session.experiment().config)),
      metrics_(session.ctx(), session.runtime(), kRingCapacity),
      evaluator_(session, directory.path() / "baselines.json"),
      checkpoints_(directory.checkpoints()),
      snapshot_(session),
      writer_(checkpoints_, {static_cast<int>(session.experiment().config.checkpoint.keep),
                             session.experiment().config.checkpoint.keep_every}) {
  for (const std::string& suite : session_.experiment().config.eval.suites) {
    suites_.push_back(
        std::make_unique<Evaluator>(session_, std::filesystem::path(), Evaluator::CacheUse::ReadOnly, suite));
  }
  parts_ = step_parts(session_.experiment(), metrics_);
  parts_.intercept = options_.intercept;
}

void require_continuable(const CheckpointData& checkpoint, const RunConfig& config) {
  const std::string hash = config_hash8(config);
  const std::string saved_hash = checkpoint.state.value("config_hash", std::string());
  if (saved_hash != hash) {
    throw ConfigError(
        fmt::format("resume: the checkpoint of step {} belongs to a configuration with hash {}, this one's is {}",
                    checkpoint.step, saved_hash, hash));
  }
  if (!checkpoint.nonfinite.empty()) {
    throw NumericsError(fmt::format("resume: the checkpoint of step {} is not finite ({}); choose an earlier one",
                                    checkpoint.step, checkpoint.nonfinite));
  }
}

void require_own_state(const CheckpointData& checkpoint, const Experiment& experiment) {
  if (checkpoint.state.value("config_hash", std::string()) != config_hash8(experiment.config)) return;
  const std::filesystem::path file = checkpoint.path / "state.json";
  const StateObject saved(checkpoint.state.at("step_state"), "step_state", file);
  const StepState state = step_state_in(checkpoint.state, checkpoint.step, file);
  const StepState expected = initial_state(experiment.config.run.seed, experiment.schedule, experiment.optimizer.beta1,
                                           experiment.optimizer.beta2, state.step, state.updates);
  if (state.seed != expected.seed) saved.refuse("seed", fmt::format("{}, the configuration's", expected.seed));
  // Devices and libraries round powers and cosines each in their own way.
  constexpr double kRelative = 1e-9, kAbsolute = 1e-12;
  const auto compare = [&](const char* key, double value, double other, double scale) {
    if (std::abs(value - other) <= kRelative * std::abs(other) + kAbsolute * scale) return;
    saved.refuse(key, fmt::format("{}, which the configuration has after {} steps and {} updates", other, state.step,
                                  state.updates));
  };
  compare("learning_rate", state.learning_rate, expected.learning_rate, experiment.schedule.base);
  compare("bias_correction1", state.bias_correction1, expected.bias_correction1, 1);
  compare("bias_correction2", state.bias_correction2, expected.bias_correction2, 1);
}

std::optional<CheckpointData> load_newest_own(const CheckpointDirectory& checkpoints, const Experiment& experiment,
                                              const std::function<void(const std::string&)>& warn) {
  CheckpointReport report;
  std::optional<CheckpointData> checkpoint = checkpoints.load_latest(
      &report, CheckpointParts::All, [&](const CheckpointData& data) { require_own_state(data, experiment); });
  for (const CheckpointReport::Skipped& skipped : report.skipped) {
    warn(fmt::format("graft: warning: {} skipped: {}", skipped.path.string(), skipped.reason));
  }
  return checkpoint;
}

void Trainer::resume(const CheckpointData& checkpoint, bool branched) {
  require_continuable(checkpoint, session_.experiment().config);
  require_own_state(checkpoint, session_.experiment());
  const auto at = static_cast<std::uint64_t>(checkpoint.step);
  const nlohmann::json stage = {{"points", parts_.task->points_at(at)}, {"dims", parts_.task->dims_at(at)}};
  if (const nlohmann::json saved = checkpoint.state.value(kCurriculum, stage); saved != stage) {
    throw DataError(
        fmt::format("resume: the checkpoint of step {} was at stage {} of the curriculum, this program is at {}",
                    checkpoint.step, saved.dump(), stage.dump()));
  }
  const std::string device = session_.runtime().device_name();
  const std::string saved = checkpoint.state.value("device", device);
  if (without_threads(saved) != without_threads(device)) {
    moved_ = fmt::format("continues on {} what ran on {}: numbers agree up to rounding only", device, saved);
  }
  resumed_ = true;
  branched_ = branched;
  foreign_ = branched && (checkpoint.path.empty() || !checkpoints_.holds(checkpoint.path));
  resumed_state_ = checkpoint.state;
  resumed_state_[kCurriculum] = stage;  // for go_back(), as the next: the first versions saved none
  resumed_score_ = checkpoint.score;
  session_.restore(checkpoint, true);
  first_step_ = checkpoint.step;
  last_saved_ = checkpoint.step;
  metrics_.start_at(static_cast<std::uint64_t>(checkpoint.step));
  if (const auto saved_interval = checkpoint.state.find(kInterval); saved_interval != checkpoint.state.end()) {
    interval_ = LogInterval::from_json(*saved_interval, checkpoint.step, checkpoint.path / "state.json");
    resumed_state_[kInterval] = interval_.json();  // not as the list that it may have been
  }
}

double Trainer::tokens_until(std::int64_t end) const {
  const Task& task = *parts_.task;
  double tokens = 0;
  for (std::int64_t step = 0; step < end;) {
    const std::int64_t next = stage_end(task, step, end);
    tokens += static_cast<double>(examples_until(next) - examples_until(step)) *
              static_cast<double>(task.tokens_at(task.points_at(static_cast<std::uint64_t>(step))));
    step = next;
  }
  return tokens;
}

std::int64_t Trainer::examples_until(std::int64_t step) const {
  return parts_.task->examples_until(step, session_.experiment().config.train.batch);
}

std::unique_lock<std::mutex> Trainer::building() const {
  return options_.building == nullptr ? std::unique_lock<std::mutex>() : std::unique_lock(*options_.building);
}

void Trainer::step_once(std::int64_t step) {
  const std::int64_t points = parts_.task->points_at(static_cast<std::uint64_t>(step));
  if (graph_ == nullptr || points != graph_points_) {
    const auto guard = building();
    graph_.reset();  // a stage left behind gives its graph back
    graph_ =
        std::make_unique<StepGraph>(session_.ctx(), session_.range(), "training step",
                                    [parts = parts_, points](const Context& ctx) { train_step(ctx, parts, points); });
    graph_points_ = points;
    graph_->plan();
    graph_->run_eager();  // libraries choose algorithms and load kernels here, which a capture must not
    return;
  }
  if (!session_.experiment().config.train.capture) {
    graph_->run_eager();
    return;
  }
  if (!graph_->captured()) {
    const auto guard = building();
    graph_->capture();
  }
  graph_->replay();
}

void Trainer::log_row(const MetricsRow& row) {
  const RunConfig& config = session_.experiment().config;
  const auto step = static_cast<std::int64_t>(row.step);
  last_loss_ = row.loss;
  if (row.skipped_in_row >= kMostSkippedInRow) stop_for_numerics(row);
  // One warning an interval: a run that skips now and then must not fill the screen.
  if (row.was_skipped() && !interval_.first_skipped()) {
    progress_->say(
        fmt::format("graft: warning: step {}: update skipped, loss {:.4g}, gradient norm {:.4g}; the first that is not "
                    "finite: {}; skipped so far: {}",
                    step, row.loss, row.gradient_norm, bad_name(static_cast<std::int64_t>(row.first_bad)),
                    static_cast<std::int64_t>(row.skipped)));
  }
  interval_.add(row);
  if (step % config.train.log_every != 0 && step != config.train.steps) return;
  const LogInterval interval = std::exchange(interval_, {});
  const auto at = static_cast<std::uint64_t>(step - 1);
  nlohmann::ordered_json line;
  line["step"] = step;
  line["examples"] = examples_until(step);
  line["tokens"] = static_cast<std::int64_t>(tokens_until(step));
  line["loss"] = interval.mean_loss();
  line["loss_last"] = row.loss;
  line["grad_norm"] = row.gradient_norm;
  line["lr"] = row.learning_rate;
  line["skipped"] = static_cast<std::int64_t>(row.skipped);
  if (const auto& bad = interval.first_skipped()) {
    line["first_bad"] = {{"step", bad->step}, {"tensor", bad_name(bad->tensor)}};
  }
  line["points"] = parts_.task->points_at(at);
  line["dims"] = parts_.task->dims_at(at);
  line["steps_per_s"] = steps_per_second(step);
  append(*metrics_file_, metrics_waiting_, with_finite_numbers(line));
}

std::string Trainer::bad_name(std::int64_t first_bad) const { return first_bad_name(*parts_.params, first_bad); }

void Trainer::stop_for_numerics(const MetricsRow& row) {
  const std::filesystem::path path = directory_.path() / "numerics.json";
  std::string found;
  try {
    const auto guard = building();
    NumericsReport report = examine_step(session_.ctx(), session_.range(), parts_);
    report.json["loss"] = with_finite_numbers(nlohmann::ordered_json(row.loss));
    found = report.origin;
    directory_.check_in_place();
    replace_text_file(path, report.json.dump(2) + "\n");
    found += fmt::format("; see {}", path.string());
  } catch (const Error& error) {  // the run ends for its numbers, whatever hides where they come from
    found += fmt::format("{}the report failed: {}", found.empty() ? "" : "; ", error.what());
  }
  throw NumericsError(fmt::format(
      "step {}: loss {:.4g} and gradient norm {:.4g}, the {}th update in a row that had to be skipped; {}; {}",
      static_cast<std::int64_t>(row.step), row.loss, row.gradient_norm, kMostSkippedInRow, found,
      divergence_advice(parts_.optimizer, parts_.schedule)));
}

std::int64_t Trainer::collect(bool drain) {
  std::int64_t steps = 0;
  while (metrics_.pending()) {
    const std::optional<std::vector<MetricsRow>> rows = metrics_.take();
    for (const MetricsRow& row : *rows) log_row(row);
    if (!rows->empty()) progress_->update(static_cast<std::int64_t>(rows->back().step), last_loss_);
    steps += static_cast<std::int64_t>(rows->size());
    if (!drain) break;
  }
  return steps;
}

std::string Trainer::headline_text(const EvaluationResult& result) const {
  const bool standard = result.suite == kStandardSuite;
  const PositionStatistics& positions = result.positions;
  std::size_t last = positions.mean.size() - 1;  // in a fixed layout of outliers, nothing may be scored at the last one
  while (last > 0 && positions.count[last] == 0) --last;
  return fmt::format(
      "eval at step {}{}: {} {} {:.4g}, {} {:.4g}", result.step,
      standard ? "" : fmt::format(", suite {}", result.suite), parts_.task->score_name(),
      result.headline == Headline::Pooled ? "pooled mean" : "mean", result.summary.value(result.headline),
      last + 1 == positions.mean.size() ? "last position" : fmt::format("position {}", last), positions.mean[last]);
}

bool Trainer::evaluate(std::int64_t step) {
  nlohmann::ordered_json lines = nlohmann::ordered_json::array();
  std::vector<std::string> suite_lines;
  {
    const auto guard = evaluated_ ? std::unique_lock<std::mutex>() : building();
    // None is written before all are there: a resume that finds one of them takes the evaluation for done.
    EvaluationResult result = evaluator_.run(step);
    std::vector<EvaluationResult> others;
    for (std::size_t i = 0; i < suites_.size() && !result.interrupted; ++i) {
      others.push_back(suites_[i]->run(step));
      result.interrupted = others.back().interrupted;
    }
    evaluation_interrupted_ = result.interrupted;
    if (result.interrupted) return false;
    last_evaluation_ = std::move(result);
    evaluated_ = true;
    // The standard one is last, where whoever follows the run looks for it.
    for (const EvaluationResult& other : others) lines.push_back(other.json());
    lines.push_back(last_evaluation_.json());
    for (const EvaluationResult& other : others) suite_lines.push_back(headline_text(other));
  }
  // a finished run that is run again has its lines already
  if (step != last_evaluated_) append(*eval_file_, eval_waiting_, std::move(lines));
  last_evaluated_ = step;
  std::string line = headline_text(last_evaluation_);
  if (last_evaluation_.accuracy) line += fmt::format(", whole answers {:.4g}", *last_evaluation_.accuracy);
  for (const auto& [name, values] : last_evaluation_.baselines) {
    if (name == "zero" || name == "least_squares") line += fmt::format("  ({} {:.4g})", name, values.back());
  }
  progress_->say(line);
  for (const std::string& suite_line : suite_lines) progress_->say(suite_line);
  const std::optional<double>& accuracy = last_evaluation_.accuracy;
  if (!stop_.decided(last_evaluation_.positions.mean, accuracy)) return false;
  const double value = stop_.value(last_evaluation_.positions.mean, accuracy);
  progress_->say(fmt::format("decided at step {}: {}, got {:.4g}", step, stop_.str(), value));
  directory_.update({{"stopped", {{"step", step}, {"rule", stop_.str()}, {"value", value}}}});
  return true;
}

void Trainer::plan_evaluations() {
  const auto guard = building();
  evaluator_.plan();
  for (const std::unique_ptr<Evaluator>& suite : suites_) suite->plan();
}

bool Trainer::evaluate_or_save(std::int64_t step) {
  try {
    return evaluate(step);
  } catch (...) {  // whatever it was, what is trained must not be lost with it
    try {
      if (save_and_wait(step)) progress_->say(fmt::format("step {} is saved, its evaluation failed", step));
    } catch (const std::exception& error) {
      progress_->say(fmt::format("graft: warning: step {} not saved: {}", step, error.what()));
    }
    throw;
  }
}

double Trainer::steps_per_second(std::int64_t step) const {
  if (progress_->steps_per_second() > 0) return progress_->steps_per_second();
  const double elapsed = std::chrono::duration<double>(Clock::now() - started_).count();
  return elapsed > 0 ? static_cast<double>(step - first_step_) / elapsed : 0;
}

void Trainer::append(JsonLines& file, std::deque<nlohmann::ordered_json>& waiting, nlohmann::ordered_json line) {
  const bool delayed = !waiting.empty();
  waiting.push_back(std::move(line));
  try {
    for (; !waiting.empty(); waiting.pop_front()) file.append(waiting.front());
  } catch (const EnvironmentError& error) {
    if (!delayed) progress_->say(fmt::format("graft: warning: {}; training goes on, the line is kept", error.what()));
  }
}

nlohmann::json Trainer::state_of_run(std::int64_t step) const {
  const RunConfig& config = session_.experiment().config;
  const auto at = static_cast<std::uint64_t>(step);
  return {{"config_hash", config_hash8(config)},
          {"seed", config.run.seed},
          {"graft", build_info().git},
          {"cuda", build_info().cuda},
          {"device", session_.runtime().device_name()},
          {kCurriculum, {{"points", parts_.task->points_at(at)}, {"dims", parts_.task->dims_at(at)}}},
          {"examples", examples_until(step)},  // the data position: every example is a function of seed and index
          {"algorithms", "heuristic"},         // matrix products: the library's own choice, nothing is timed
          {kMetricsBytes, metrics_file_->bytes()},
          {kEvaluationBytes, eval_file_->bytes()},
          {kInterval, interval_.json()}};
}

std::optional<CheckpointScore> Trainer::score_at(std::int64_t step) const {
  if (!evaluated_ || last_evaluation_.step != step) return std::nullopt;
  const double value = last_evaluation_.accuracy.value_or(last_evaluation_.summary.value(last_evaluation_.headline));
  if (!std::isfinite(value)) return std::nullopt;
  const std::string name(parts_.task->score_name());
  return CheckpointScore{value, name, name == "accuracy"};
}

void Trainer::check_room() {
  const RunConfig& config = session_.experiment().config;
  if (!resumed_) {
    if (const auto left = checkpoints_.abandoned(); !left.empty()) {
      throw DataError(fmt::format(
          "run: {} holds no checkpoint to continue from, only branches that were left, the last one in {}; take one of "
          "its checkpoints up with --resume PATH, or choose another --run-dir",
          directory_.path().string(), left.back().directory.string()));
    }
  }
  if (first_step_ >= config.train.steps && !foreign_) return;
  checkpoints_.check_writable();
  const std::uint64_t each = CheckpointDirectory::bytes_needed(snapshot_.view(nlohmann::json::object()));
  const std::uint64_t available = checkpoints_.bytes_available();
  if (each > available) {
    throw EnvironmentError(fmt::format(
        "checkpoint: {}: nothing that is trained could be saved; free some space or choose another --run-dir",
        room_text(each, checkpoints_.path(), available)));
  }
  // A new one is complete before an old one goes.
  const auto most = static_cast<std::uint64_t>(config.checkpoint.every > 0 ? config.checkpoint.keep + 1 : 1);
  const auto present = static_cast<std::uint64_t>(checkpoints_.list().size());
  const std::uint64_t more = (most > present ? most - present : 1) * each;
  if (more > available) {
    progress_->say(
        fmt::format("graft: warning: checkpoints will need {} more bytes in {} and {} are available; lower "
                    "checkpoint.keep or free some space",
                    more, checkpoints_.path().string(), available));
  }
}

std::optional<AbandonedCheckpoints> Trainer::go_back() {
  if (!foreign_) return checkpoints_.set_aside_after(first_step_);
  // One from elsewhere is saved before anything else goes: whenever the process dies, the next start finds its place.
  // If the run has another one of this step, that one goes first, with those after it, and the branch before it stays.
  std::optional<AbandonedCheckpoints> abandoned;
  if (std::filesystem::exists(checkpoints_.path() / name_of_step(first_step_))) {
    abandoned = checkpoints_.set_aside_after(first_step_ - 1);
  }
  snapshot_.take();
  snapshot_.wait();
  nlohmann::json state = resumed_state_;
  for (const char* key : {kMetricsBytes, kEvaluationBytes}) state.erase(key);  // of another run's or branch's logs
  CheckpointView content = snapshot_.view(state);
  content.score = resumed_score_;
  checkpoints_.save(content);
  return abandoned ? abandoned : checkpoints_.set_aside_after(first_step_);
}

void Trainer::open_logs() {
  const JsonLinesTruncation metrics = truncate_json_lines(directory_.metrics(), first_step_);
  // What was evaluated at the step of a checkpoint from elsewhere were other weights.
  const std::int64_t last_own = foreign_ ? first_step_ - 1 : first_step_;
  // The standard evaluation is the last of a step's lines: without it, a crash cut the others' write short.
  const auto is_standard = [](const nlohmann::json& line) {
    const auto suite = line.find("suite");
    return suite == line.end() || *suite == kStandardSuite;
  };
  const JsonLinesTruncation evaluations = truncate_json_lines(directory_.evaluations(), last_own, is_standard);
  last_evaluated_ = evaluations.last_step;
  metrics_file_ = std::make_unique<JsonLines>(directory_.metrics());
  eval_file_ = std::make_unique<JsonLines>(directory_.evaluations());
  if (!resumed_) {
    if (const std::int64_t dropped = metrics.dropped + evaluations.dropped; dropped > 0) {
      progress_->say(
          fmt::format("graft: warning: {} holds no checkpoint: training starts over, and the {} lines in its "
                      "logs are removed",
                      directory_.path().string(), dropped));
    }
    return;
  }
  const auto tell_foreign = [&](const std::filesystem::path& log, std::int64_t lines) {
    if (lines == 0) return;
    progress_->say(
        fmt::format("graft: warning: {}: {} at the end {} no JSON object with a \"step\", which all lines of "
                    "the log are, and {} removed",
                    log.string(), lines == 1 ? "1 line" : fmt::format("{} lines", lines), lines == 1 ? "is" : "are",
                    lines == 1 ? "is" : "are"));
  };
  tell_foreign(directory_.metrics(), metrics.foreign);
  tell_foreign(directory_.evaluations(), evaluations.foreign);
  const std::int64_t every = session_.experiment().config.train.log_every;
  const std::int64_t last_logged = first_step_ / every * every;
  if (foreign_ && metrics.kept + evaluations.kept > 0) {
    progress_->say(
        fmt::format("graft: warning: the logs in {} until step {} tell of the branch that the run was on, and the "
                    "checkpoint comes from another one",
                    directory_.path().string(), first_step_));
  }
  if (branched_ && metrics.last_step < last_logged) {
    progress_->say(
        fmt::format("graft: warning: {} lacks the lines until step {}: they are where the checkpoint comes from",
                    directory_.metrics().string(), last_logged));
  }
  if (branched_) return;  // the lengths may be those of another branch's logs
  const auto compare = [&](const JsonLines& file, const char* key) {
    const auto saved = resumed_state_.find(key);
    if (saved == resumed_state_.end() || !saved->is_number_unsigned()) return;
    if (const auto expected = saved->get<std::uint64_t>(); file.bytes() < expected) {
      progress_->say(
          fmt::format("graft: warning: {} holds {} bytes until step {} and held {} when the checkpoint was "
                      "saved: lines are lost",
                      file.path().string(), file.bytes(), first_step_, expected));
    }
  };
  compare(*metrics_file_, kMetricsBytes);
  compare(*eval_file_, kEvaluationBytes);
}

void Trainer::reopen_lost_logs() {
  for (JsonLines* file : {metrics_file_.get(), eval_file_.get()}) {
    if (file->in_place()) continue;
    file->reopen();
    progress_->say(
        fmt::format("graft: warning: {} was removed or replaced while the run went on: the lines written to the "
                    "file before are gone, those to come go into the new one",
                    file->path().string()));
  }
}

void Trainer::start_save(std::int64_t step) {
  if (step == last_saved_) return;
  writer_.wait();  // until then it uses the snapshot and the logs
  report_saves();  // what is said of earlier saves comes before what is said of this one
  try {
    directory_.check_in_place();
    reopen_lost_logs();
    // What the checkpoint says was logged must be in the files; the writer's thread waits until it is on the disk.
    for (; !metrics_waiting_.empty(); metrics_waiting_.pop_front()) metrics_file_->append(metrics_waiting_.front());
    for (; !eval_waiting_.empty(); eval_waiting_.pop_front()) eval_file_->append(eval_waiting_.front());
  } catch (const EnvironmentError& error) {
    save_problem_ = error.what();
    progress_->say(fmt::format("graft: warning: checkpoint of step {} not saved: {}", step, save_problem_));
    return;
  }
  last_started_ = step;
  snapshot_.take();
  writer_.start({step, [this, state = state_of_run(step), score = score_at(step)] {
                   metrics_file_->sync();
                   eval_file_->sync();
                   snapshot_.wait();
                   CheckpointView content = snapshot_.view(state);
                   content.score = score;
                   return content;
                 }});
}

void Trainer::report_saves() {
  for (const CheckpointWriter::Report& report : writer_.take_reports()) {
    if (!report.problem.empty()) {
      // A disk that is full must not end a run: the last good checkpoint stays.
      save_problem_ = report.problem;
      progress_->say(fmt::format("graft: warning: checkpoint of step {} not saved: {}; {}", report.step, report.problem,
                                 report.final ? "training goes on with the last good one" : "trying again"));
    } else if (!report.nonfinite.empty()) {
      last_nonfinite_ = report.step;
      progress_->say(
          fmt::format("graft: warning: checkpoint of step {} is not finite ({}): kept to be looked at, but a "
                      "resume takes an earlier one",
                      report.step, report.nonfinite));
    } else {
      last_saved_ = report.step;
      static_cast<void>(checkpoint_lock_.take(checkpoints_.path()));  // no reason to end a run
      if (!std::exchange(save_problem_, {}).empty()) {
        progress_->say(fmt::format("checkpoint of step {} saved, after a save that failed", report.step));
      }
    }
    if (!report.not_pruned.empty()) {
      progress_->say(fmt::format("graft: warning: an old checkpoint could not be removed: {}", report.not_pruned));
    }
  }
}

bool Trainer::save_and_wait(std::int64_t step) {
  if (step != last_started_) start_save(step);
  writer_.wait();
  report_saves();
  if (step == last_saved_) return true;
  if (step == last_nonfinite_) {
    throw NumericsError(
        fmt::format("step {}: the weights or moments are not finite; lower optimizer.lr, or continue "
                    "from an earlier checkpoint in {}",
                    step, directory_.checkpoints().string()));
  }
  return false;
}

TrainingOutcome Trainer::run() {
  const RunConfig& config = session_.experiment().config;
  progress_ = std::make_unique<Progress>(out_, first_step_, config.train.steps);
  check_room();
  plan_evaluations();
  checkpoint_lock_.require(checkpoints_.path());
  // Before anything of the old branch is cut: a crash from here on must find no later checkpoint to continue from.
  std::optional<AbandonedCheckpoints> abandoned;
  if (branched_) abandoned = go_back();
  open_logs();
  if (abandoned) {
    progress_->say(
        fmt::format("{} checkpoints after step {} are set aside in {}; `graft ckpt gc --abandoned` removes them",
                    abandoned->checkpoints.size(), first_step_, abandoned->directory.string()));
  }
  if (!moved_.empty()) progress_->say(moved_);
  std::optional<SignalGuard> signals;
  if (options_.guards_signals) signals.emplace();
  evaluator_.keep_baselines_if([this] { return directory_.in_place(); });
  const auto watch = [this](Evaluator& evaluator) {
    evaluator.watch([] { return SignalGuard::received() != 0; },
                    [this](const std::string& line) { progress_->say(line); });
  };
  watch(evaluator_);
  for (const std::unique_ptr<Evaluator>& suite : suites_) watch(*suite);
  started_ = Clock::now();

  const auto due = [](std::int64_t step, std::int64_t every) { return every > 0 && step % every == 0; };
  Clock::time_point polled = Clock::now();
  std::int64_t requested = first_step_;
  std::int64_t step = first_step_;
  // A run that ended early and is run again is found decided by the same evaluation.
  bool evaluated = stop_.given() && step > 0 && step < config.train.steps && last_evaluated_ == step;
  // One that was interrupted, or is asked for by a changed eval.every, is made up for.
  if (step > 0 && step < config.train.steps && due(step, config.eval.every) && last_evaluated_ != step) {
    evaluated = true;
  }
  bool decided = evaluated && evaluate_or_save(step);
  QueueDepth queue;
  while (step < config.train.steps && !decided && SignalGuard::received() == 0) {
    step_once(step);
    ++step;
    report_saves();
    const bool boundary =
        due(step, config.eval.every) || due(step, config.checkpoint.every) || step == config.train.steps;
    const Clock::time_point now = Clock::now();
    if (boundary || step - requested >= queue.steps() ||
        std::chrono::duration<double>(now - polled).count() >= kPollSeconds) {
      queue.done(collect(boundary));  // of what was asked for one poll ago: the device never waits for the host
      metrics_.request(session_.ctx(), static_cast<std::uint64_t>(step));
      requested = step;
      polled = now;
      if (boundary) collect(true);
    }
    evaluated = due(step, config.eval.every);
    decided = evaluated && evaluate_or_save(step);
    // The last one waits for its evaluation and is not written in the background.
    if (due(step, config.checkpoint.every) && step < config.train.steps && !decided) start_save(step);
    if (boundary) queue.restart();
  }
  metrics_.request(session_.ctx(), static_cast<std::uint64_t>(step));
  collect(true);

  TrainingOutcome outcome;
  outcome.step = step;
  outcome.signal = step < config.train.steps && !decided ? SignalGuard::received() : 0;
  if (outcome.signal == 0 && !evaluated) decided = evaluate_or_save(step);
  if (evaluation_interrupted_) outcome.signal = SignalGuard::received();
  outcome.stopped = decided;
  if (!save_and_wait(step)) {
    const RunDirectory::Place place = directory_.place();
    throw EnvironmentError(fmt::format("step {} is not saved: {}; {} to continue from step {}", step, save_problem_,
                                       place == RunDirectory::Place::Own ? "make room and run the same command"
                                       : place == RunDirectory::Place::OtherLock
                                           ? "make sure that none is and run the same command"
                                           : "say with --run-dir where it is now",
                                       std::max<std::int64_t>(last_saved_, 0)));
  }
  outcome.evaluation = last_evaluation_;
  outcome.parameter_hash = session_.experiment().params.hash(session_.ctx());
  progress_->finish();
  return outcome;
}

}  // namespace graft
