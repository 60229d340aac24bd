#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include "engine/error.h"
#include "engine/stream.h"
#include "engine/version.h"
#include "train/flops.h"
#include "train/signals.h"

namespace graft {
namespace {

constexpr std::int64_t kRingCapacity = 4096;
constexpr std::int64_t kMostStepsInFlight = 1024;
constexpr double kPollSeconds = 0.1;
constexpr std::int64_t kMostNonfinite = 10;

using Clock = std::chrono::steady_clock;

}  // namespace

Trainer::Trainer(Session& session, RunDirectory& directory, std::FILE* out, TrainerOptions options)
    : session_(session),
      directory_(directory),
      out_(out),
      options_(options),
      stop_(StopRule::of(session.experiment().config)),
      metrics_(session.ctx(), session.runtime(), kRingCapacity),
      evaluator_(session, directory.path() / "baselines.json"),
      checkpoints_(directory.checkpoints()) {
  const Experiment& experiment = session_.experiment();
  parts_ = {experiment.task.get(),
            experiment.model.get(),
            &session_.experiment().params,
            &metrics_,
            experiment.optimizer,
            experiment.schedule,
            {RandomDomain::Train, experiment.config.train.batch, 0, false}};
}

void Trainer::resume(const CheckpointData& checkpoint, bool branched) {
  const std::string hash = config_hash8(session_.experiment().config);
  const std::string saved_hash = checkpoint.state.value("config_hash", std::string());
  if (saved_hash != hash) {
    throw ConfigError(
        fmt::format("resume: the checkpoint of step {} belongs to a configuration with hash {}, this one's is {}",
                    checkpoint.step, saved_hash, hash));
  }
  branched_ = branched;
  session_.restore(checkpoint, true);
  first_step_ = checkpoint.step;
  last_saved_ = checkpoint.step;
  metrics_.start_at(static_cast<std::uint64_t>(checkpoint.step));
  if (const auto rows = checkpoint.state.find("interval"); rows != checkpoint.state.end()) {
    for (const nlohmann::json& row : *rows) {
      interval_.push_back({number_of(row.at(0)), number_of(row.at(1)), number_of(row.at(2)), number_of(row.at(3)),
                           number_of(row.at(4))});
    }
  }
}

double Trainer::tokens_until(std::int64_t end) const {
  const Task& task = *parts_.task;
  double tokens = 0;
  for (std::int64_t step = 0; step < end;) {
    const std::int64_t next = stage_end(task, step, end);
    tokens += static_cast<double>(next - step) *
              static_cast<double>(task.tokens_at(task.points_at(static_cast<std::uint64_t>(step))));
    step = next;
  }
  return tokens * static_cast<double>(session_.experiment().config.train.batch);
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
  const bool finite = std::isfinite(row.loss) && std::isfinite(row.gradient_norm);
  nonfinite_in_a_row_ = finite ? 0 : nonfinite_in_a_row_ + 1;
  if (nonfinite_in_a_row_ >= kMostNonfinite) {
    throw NumericsError(
        fmt::format("step {}: loss {} and gradient norm {} are not finite, the tenth step in a row; lower "
                    "optimizer.lr, or see the last checkpoint in {}",
                    step, row.loss, row.gradient_norm, directory_.checkpoints().string()));
  }
  interval_.push_back(row);
  if (step % config.train.log_every != 0 && step != config.train.steps) return;
  double loss = 0;
  for (const MetricsRow& each : interval_) loss += each.loss;
  loss /= static_cast<double>(interval_.size());
  interval_.clear();
  const auto at = static_cast<std::uint64_t>(step - 1);
  nlohmann::ordered_json line;
  line["step"] = step;
  line["examples"] = step * config.train.batch;
  line["tokens"] = static_cast<std::int64_t>(tokens_until(step));
  line["loss"] = loss;
  line["loss_last"] = row.loss;
  line["grad_norm"] = row.gradient_norm;
  line["lr"] = row.learning_rate;
  line["skipped"] = static_cast<std::int64_t>(row.skipped);
  line["points"] = parts_.task->points_at(at);
  line["dims"] = parts_.task->dims_at(at);
  line["steps_per_s"] = steps_per_second(step);
  append(*metrics_file_, metrics_waiting_, with_finite_numbers(line));
}

void Trainer::collect(bool drain) {
  while (metrics_.pending()) {
    const std::optional<std::vector<MetricsRow>> rows = metrics_.take();
    for (const MetricsRow& row : *rows) log_row(row);
    if (!rows->empty()) progress_->update(static_cast<std::int64_t>(rows->back().step), last_loss_);
    if (!drain) return;
  }
}

bool Trainer::evaluate(std::int64_t step) {
  {
    const auto guard = evaluated_ ? std::unique_lock<std::mutex>() : building();
    last_evaluation_ = evaluator_.run(step);
    evaluated_ = true;
  }
  // a finished run that is run again has its line already
  if (step != last_evaluated_) append(*eval_file_, eval_waiting_, last_evaluation_.json());
  last_evaluated_ = step;
  const ScoreSummary& summary = last_evaluation_.summary;
  std::string line = fmt::format("eval at step {}: {} mean {:.4g}, last position {:.4g}", step,
                                 parts_.task->score_name(), summary.mean_from_second, summary.last);
  for (const auto& [name, values] : last_evaluation_.baselines) {
    if (name == "zero" || name == "least_squares") line += fmt::format("  ({} {:.4g})", name, values.back());
  }
  progress_->say(line);
  if (!stop_.decided(last_evaluation_.positions.mean)) return false;
  const double value = stop_.value(last_evaluation_.positions.mean);
  progress_->say(fmt::format("decided at step {}: {}, got {:.4g}", step, stop_.str(), value));
  directory_.update({{"stopped", {{"step", step}, {"rule", stop_.str()}, {"value", value}}}});
  return true;
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

bool Trainer::save(std::int64_t step) {
  if (step == last_saved_) return true;
  const RunConfig& config = session_.experiment().config;
  nlohmann::json rows = nlohmann::json::array();
  for (const MetricsRow& row : interval_) {
    rows.push_back({row.step, row.loss, row.gradient_norm, row.learning_rate, row.skipped});
  }
  const nlohmann::json extra = {{"config_hash", config_hash8(config)},
                                {"seed", config.run.seed},
                                {"graft", build_info().git},
                                {"device", session_.runtime().device_name()},
                                {"metrics_bytes", metrics_file_->bytes()},
                                {"eval_bytes", eval_file_->bytes()},
                                {"interval", with_finite_numbers(rows)}};
  try {
    // What the checkpoint says was logged must be on the disk.
    for (; !metrics_waiting_.empty(); metrics_waiting_.pop_front()) metrics_file_->append(metrics_waiting_.front());
    for (; !eval_waiting_.empty(); eval_waiting_.pop_front()) eval_file_->append(eval_waiting_.front());
    metrics_file_->sync();
    eval_file_->sync();
    checkpoints_.save(session_.snapshot(extra));
  } catch (const EnvironmentError& error) {
    // A disk that is full must not end a run: the last good checkpoint stays, and the next save tries again.
    save_problem_ = error.what();
    progress_->say(fmt::format("graft: warning: checkpoint of step {} not saved: {}", step, save_problem_));
    return false;
  }
  last_saved_ = step;
  try {
    // The steps that a run gave up by going back to an earlier checkpoint go when the first new one is safe.
    if (std::exchange(branched_, false)) checkpoints_.discard_after(step);
    checkpoints_.prune({static_cast<int>(config.checkpoint.keep), config.checkpoint.keep_every});
  } catch (const EnvironmentError& error) {
    progress_->say(fmt::format("graft: warning: an old checkpoint could not be removed: {}", error.what()));
  }
  return true;
}

TrainingOutcome Trainer::run() {
  const RunConfig& config = session_.experiment().config;
  truncate_json_lines(directory_.metrics(), first_step_);
  last_evaluated_ = truncate_json_lines(directory_.evaluations(), first_step_).last_step;
  metrics_file_ = std::make_unique<JsonLines>(directory_.metrics());
  eval_file_ = std::make_unique<JsonLines>(directory_.evaluations());
  progress_ = std::make_unique<Progress>(out_, first_step_, config.train.steps);
  std::optional<SignalGuard> signals;
  if (options_.guards_signals) signals.emplace();
  evaluator_.watch([] { return SignalGuard::received() != 0; },
                   [this](const std::string& line) { progress_->say(line); });
  started_ = Clock::now();

  const auto due = [](std::int64_t step, std::int64_t every) { return every > 0 && step % every == 0; };
  Clock::time_point polled = Clock::now();
  std::int64_t requested = first_step_;
  std::int64_t step = first_step_;
  // A run that ended early and is run again is found decided by the same evaluation.
  bool evaluated = stop_.given() && step > 0 && step < config.train.steps && last_evaluated_ == step;
  bool decided = evaluated && evaluate(step);
  while (step < config.train.steps && !decided && SignalGuard::received() == 0) {
    step_once(step);
    ++step;
    const bool boundary =
        due(step, config.eval.every) || due(step, config.checkpoint.every) || step == config.train.steps;
    const Clock::time_point now = Clock::now();
    if (boundary || step - requested >= kMostStepsInFlight ||
        std::chrono::duration<double>(now - polled).count() >= kPollSeconds) {
      collect(boundary);  // what was asked for one poll ago has long arrived: the device never waits for the host
      metrics_.request(session_.ctx(), static_cast<std::uint64_t>(step));
      requested = step;
      polled = now;
      if (boundary) collect(true);
    }
    evaluated = due(step, config.eval.every);
    decided = evaluated && evaluate(step);
    if (due(step, config.checkpoint.every)) save(step);
  }
  metrics_.request(session_.ctx(), static_cast<std::uint64_t>(step));
  collect(true);

  TrainingOutcome outcome;
  outcome.step = step;
  outcome.signal = step < config.train.steps && !decided ? SignalGuard::received() : 0;
  if (outcome.signal == 0 && !evaluated) decided = evaluate(step);
  outcome.stopped = decided;
  if (!save(step)) {
    throw EnvironmentError(
        fmt::format("step {} is not saved: {}; make room and run the same command to continue from step {}", step,
                    save_problem_, std::max<std::int64_t>(last_saved_, 0)));
  }
  outcome.evaluation = last_evaluation_;
  outcome.parameter_hash = session_.experiment().params.hash(session_.ctx());
  progress_->finish();
  return outcome;
}

}  // namespace graft
