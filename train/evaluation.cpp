#include "train/evaluation.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <span>
#include <utility>

#include "engine/error.h"
#include "engine/require.h"
#include "engine/stream.h"
#include "ops/point_scores.h"
#include "tasks/baselines.h"
#include "train/file_io.h"
#include "train/json_lines.h"

namespace graft {
namespace {

constexpr std::uint64_t kLargestCache = 1U << 26U;

std::vector<double> download(const Context& ctx, const Tensor& tensor, std::string_view name) {
  std::vector<std::byte> bytes(tensor.bytes());
  ctx.stream->download(bytes.data(), tensor.view().data, bytes.size(), name);
  std::vector<double> values(static_cast<std::size_t>(tensor.elements()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype() == DType::F64) {
      std::memcpy(&values[i], bytes.data() + 8 * i, 8);
    } else {
      float narrow = 0;
      std::memcpy(&narrow, bytes.data() + 4 * i, 4);
      values[i] = static_cast<double>(narrow);
    }
  }
  return values;
}

/// Scores [prompts, points] of an evaluation in which a prompt is several sequences, each with its score at one
/// position, so that statistics draw prompts and not sequences.
std::vector<double> folded(const std::vector<double>& scores, std::int64_t prompts, std::int64_t sequences,
                           std::int64_t points) {
  std::vector<double> result(static_cast<std::size_t>(prompts * points), kNotScored);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / points;
    const auto point = static_cast<std::int64_t>(i) % points;
    if (scores[i] == kNotScored) continue;
    result[static_cast<std::size_t>(row / (sequences / prompts) * points + point)] = scores[i];
  }
  return result;
}

/// Answers [prompts, points] of a baseline to the queries, each after the points before its position.
std::vector<double> predict_queries(const Baseline& baseline, std::span<const float> xs, std::span<const float> ys,
                                    std::span<const float> queries, std::int64_t prompts, std::int64_t points,
                                    std::int64_t dim, PredictOptions options) {
  const std::span<const std::uint8_t> wanted_anywhere = options.wanted;
  std::vector<double> predictions(static_cast<std::size_t>(prompts * points), std::nan(""));
  options.scored = {};
  for (std::int64_t i = 0; i < points; ++i) {
    if (wanted_anywhere[static_cast<std::size_t>(i)] == 0) continue;
    const auto length = static_cast<std::size_t>(i + 1);
    const auto width = static_cast<std::size_t>(dim);
    std::vector<float> short_xs, short_ys;  // points 0 .. i-1, then the query
    for (std::int64_t p = 0; p < prompts; ++p) {
      const auto first = static_cast<std::size_t>(p * points);
      const auto x = xs.subspan(first * width, (length - 1) * width);
      const auto query = queries.subspan((first + length - 1) * width, width);
      short_xs.insert(short_xs.end(), x.begin(), x.end());
      short_xs.insert(short_xs.end(), query.begin(), query.end());
      const auto y = ys.subspan(first, length);  // the last one is never looked at
      short_ys.insert(short_ys.end(), y.begin(), y.end());
    }
    std::vector<std::uint8_t> wanted(length, 0);
    wanted.back() = 1;
    options.wanted = wanted;
    const std::vector<double> answers = predict(baseline, short_xs, short_ys, prompts, i + 1, dim, options);
    if (answers.empty()) return {};  // stopped
    for (std::size_t p = 0; p < static_cast<std::size_t>(prompts); ++p) {
      predictions[p * static_cast<std::size_t>(points) + length - 1] = answers[p * length + length - 1];
    }
  }
  return predictions;
}

std::vector<std::string> baseline_selection(const Session& session, const Task& task) {
  const std::vector<std::string>& wanted = session.experiment().config.eval.baselines;
  if (wanted == std::vector<std::string>{"all"}) return task.baselines();
  for (const std::string& name : wanted) static_cast<void>(find_baseline(name));
  return wanted;
}

std::string number(double value) {
  if (!std::isfinite(value)) return fmt::format("{}", value);
  const double size = std::abs(value);
  if (size != 0 && (size < 1e-3 || size >= 1e5)) return fmt::format("{:.2e}", value);
  return fmt::format("{:.4g}", value);
}

}  // namespace

nlohmann::ordered_json EvaluationResult::json() const {
  const auto numbers = [](const ScoreSummary& of) {
    return nlohmann::ordered_json{
        {"mean_from_second", of.mean_from_second}, {"mean_all", of.mean_all}, {"last", of.last}, {"pooled", of.pooled}};
  };
  nlohmann::ordered_json line;
  line["step"] = step;
  line["suite"] = suite;
  line["prompts"] = prompts;
  line["summary"] = numbers(summary);
  line["summary"]["headline"] = name_of(headline);
  if (accuracy) line["summary"]["accuracy"] = *accuracy;
  if (!positions.lower.empty()) {
    line["summary_lower"] = numbers(positions.summary_lower);
    line["summary_upper"] = numbers(positions.summary_upper);
  }
  line["positions"] = positions.mean;
  line["standard_deviation"] = positions.standard_deviation;
  line["lower"] = positions.lower;
  line["upper"] = positions.upper;
  line["baselines"] = baselines;
  line["baseline_prompts"] = baseline_prompts;
  line["seconds"] = seconds;
  return with_finite_numbers(line);
}

Evaluator::Evaluator(Session& session, std::filesystem::path cache, CacheUse cache_use, const std::string& suite)
    : session_(session),
      suite_(suite),
      suite_task_(suite == kStandardSuite ? nullptr : session.experiment().task->suite(suite)),
      task_(suite_task_ == nullptr ? *session.experiment().task : *suite_task_),
      cache_(std::move(cache)),
      cache_use_(cache_use),
      state_(session.ctx(), "evaluation state") {
  const Experiment& experiment = session_.experiment();
  const Context& ctx = session_.ctx();
  sequences_ = task_.sequences(experiment.config.eval.prompts);
  scores_ = ctx.empty_run({sequences_, task_.final_points()}, ctx.stream_dtype(), "evaluation scores");

  Context eval_ctx = ctx;
  eval_ctx.training = false;
  eval_ctx.state = state_.pointer();
  StepParts parts;
  parts.task = &task_;
  parts.model = experiment.model.get();
  const Selection examples{RandomDomain::Evaluation, experiment.config.eval.batch, 0, true};
  graph_ = std::make_unique<StepGraph>(
      eval_ctx, session_.range(), "evaluation step",
      [parts, examples, scores = scores_](const Context& step) { eval_step(step, parts, examples, scores); });
}

EvaluationResult Evaluator::run(std::int64_t step) {
  const auto start = std::chrono::steady_clock::now();
  const Experiment& experiment = session_.experiment();
  const Context& ctx = session_.ctx();
  const std::int64_t batches = sequences_ / experiment.config.eval.batch;
  StepState fresh;
  fresh.seed = experiment.config.run.seed;
  state_.write(ctx, fresh);
  plan();
  std::unique_ptr<Event> before;  // the batch before: the host is one ahead, so that `stop` never waits for many
  for (std::int64_t batch = 0; batch < batches; ++batch) {
    if (stopped()) return interrupted(step);
    if (graph_->captured()) {
      graph_->replay();
    } else {
      graph_->run_eager();
      if (experiment.config.train.capture) graph_->capture();
    }
    std::unique_ptr<Event> done = ctx.stream->record();
    if (before) before->synchronize();
    before = std::move(done);
  }

  std::vector<double> scores = download(ctx, scores_, "scores");
  const std::int64_t prompts = experiment.config.eval.prompts;
  if (sequences_ != prompts) scores = folded(scores, prompts, sequences_, task_.final_points());
  std::vector<std::uint8_t> scored(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) scored[i] = scores[i] == kNotScored ? 0 : 1;

  EvaluationResult result;
  result.step = step;
  result.suite = suite_;
  result.prompts = prompts;
  const auto resamples = static_cast<int>(experiment.config.eval.bootstrap);
  result.positions = position_statistics(
      scores, prompts, task_.final_points(),
      {.resamples = std::max(resamples, 1), .seed = experiment.config.run.seed, .stop = stop_}, scored);
  if (result.positions.lower.empty()) return interrupted(step);
  if (resamples == 0) {  // no band was asked for
    result.positions.lower.clear();
    result.positions.upper.clear();
  }
  result.summary = summarize(result.positions);
  result.headline = task_.headline();
  if (const std::vector<std::int64_t> answer = task_.answer_points(); !answer.empty()) {
    result.accuracy = answer_accuracy(scores, prompts, task_.final_points(), answer);
  }
  if (!baselines_known_) {
    baselines_known_ = true;  // unless they are stopped
    baselines_ = load_or_compute_baselines();
  }
  result.interrupted = !baselines_known_;
  result.baselines = baselines_;
  for (const auto& [name, values] : baselines_) result.baseline_prompts[name] = prompts_for(name);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

void Evaluator::plan() {
  if (graph_->arena().planned()) return;
  try {
    graph_->plan();
  } catch (const OutOfMemoryError& error) {
    throw OutOfMemoryError(fmt::format("{}; an evaluation takes eval.batch = {} prompts at once, lower it",
                                       error.what(), session_.experiment().config.eval.batch),
                           error.room());
  }
}

EvaluationResult Evaluator::interrupted(std::int64_t step) const {
  EvaluationResult partial;
  partial.step = step;
  partial.suite = suite_;
  partial.interrupted = true;
  return partial;
}

std::int64_t Evaluator::prompts_for(const std::string& baseline) const {
  const EvalTable& eval = session_.experiment().config.eval;
  return find_baseline(baseline).expensive ? std::min(eval.prompts, eval.baseline_prompts) : eval.prompts;
}

std::string Evaluator::cache_key() const {
  const RunConfig& config = session_.experiment().config;
  std::string key = fmt::format("seed {} prompts {} {}", config.run.seed, config.eval.prompts, task_.description());
  key += fmt::format(" baselines on {} prompts at {} positions", config.eval.baseline_prompts,
                     config.eval.baseline_positions);
  if (suite_ != kStandardSuite) key += " suite " + suite_;
  for (const std::string& name : baseline_selection(session_, task_)) key += " " + name;
  return key;
}

void Evaluator::watch(std::function<bool()> stop, std::function<void(const std::string&)> say) {
  stop_ = std::move(stop);
  say_ = std::move(say);
}

std::function<void(std::int64_t)> Evaluator::report(const std::string& baseline, std::int64_t prompts) const {
  if (!say_) return {};
  using Clock = std::chrono::steady_clock;
  return [this, baseline, prompts, due = Clock::now() + std::chrono::seconds(5)](std::int64_t done) mutable {
    if (Clock::now() < due || done == prompts) return;
    due = Clock::now() + std::chrono::seconds(30);
    say_(fmt::format("baseline {}: {} of {} prompts", baseline, done, prompts));
  };
}

BaselineScores Evaluator::load_or_compute_baselines() {
  const Experiment& experiment = session_.experiment();
  const Task& task = task_;
  if (!cache_.empty() && std::filesystem::exists(cache_)) {
    try {
      const nlohmann::json saved = parse_json(read_text_file(cache_, kLargestCache));
      if (saved.at("key") == cache_key()) {
        BaselineScores scores;
        for (const auto& [name, values] : saved.at("positions").items()) {
          for (const nlohmann::json& value : values) scores[name].push_back(number_of(value));
          if (std::ssize(scores[name]) != task.final_points()) throw DataError("another number of positions");
        }
        return scores;
      }
    } catch (const std::exception&) {  // a damaged cache is computed again
    }
  }

  if (baseline_selection(session_, task).empty()) return {};
  const std::int64_t prompts = experiment.config.eval.prompts;
  const std::int64_t points = task.final_points();
  const std::int64_t dim = task.shape().input_width;
  std::vector<float> xs;
  std::vector<float> ys;
  std::vector<float> queries;        // empty: the xs
  std::vector<float> labels;         // of the queries
  std::vector<std::uint8_t> scored;  // empty: all are
  xs.reserve(static_cast<std::size_t>(prompts * points * dim));
  for (std::int64_t i = 0; i < prompts; ++i) {
    if (stopped()) {
      baselines_known_ = false;
      return {};
    }
    const Prompt prompt =
        task.prompt(experiment.config.run.seed, RandomDomain::Evaluation, 0, static_cast<std::uint32_t>(i));
    xs.insert(xs.end(), prompt.xs.begin(), prompt.xs.end());
    ys.insert(ys.end(), prompt.ys.begin(), prompt.ys.end());
    scored.insert(scored.end(), prompt.scored_points.begin(), prompt.scored_points.end());
    queries.insert(queries.end(), prompt.queries.begin(), prompt.queries.end());
    const std::vector<float>& answers = prompt.queries.empty() ? prompt.ys : prompt.query_labels;
    labels.insert(labels.end(), answers.begin(), answers.end());
  }
  require(
      xs.size() == static_cast<std::size_t>(prompts * points * dim) &&
          ys.size() == static_cast<std::size_t>(prompts * points),
      "eval.baselines: {} inputs and {} labels in {} prompts, expected {} points of {} dimensions in each: what this "
      "task's prompts hold, baselines cannot read",
      xs.size(), ys.size(), prompts, points, dim);
  BaselineScores scores;
  for (const std::string& name : baseline_selection(session_, task)) {
    const Baseline& baseline = find_baseline(name);
    const EvalTable& eval = experiment.config.eval;
    const std::int64_t asked = prompts_for(name);
    const auto values = static_cast<std::size_t>(asked * points);
    PredictOptions options{.threads = session_.threads(), .stop = stop_};
    if (!scored.empty()) options.scored = std::span(scored).first(values);
    std::vector<std::uint8_t> wanted(static_cast<std::size_t>(points), 1);
    if (baseline.expensive) {
      wanted = spread_positions(points, eval.baseline_positions);
      options.progress = report(name, asked);
    }
    options.wanted = wanted;
    const auto inputs = values * static_cast<std::size_t>(dim);
    const std::vector<double> predictions =
        queries.empty()
            ? predict(baseline, std::span(xs).first(inputs), std::span(ys).first(values), asked, points, dim, options)
            : predict_queries(baseline, xs, ys, queries, asked, points, dim, options);
    if (predictions.empty()) {  // stopped
      baselines_known_ = false;
      return scores;
    }
    std::vector<double> means(wanted.size()), counts(wanted.size());
    for (std::size_t i = 0; i < predictions.size(); ++i) {
      const std::size_t position = i % wanted.size();
      if (wanted[position] == 0 || (!scored.empty() && scored[i] == 0)) continue;
      means[position] += task.score(predictions[i], static_cast<double>(labels[i]));
      counts[position] += 1;
    }
    for (std::size_t i = 0; i < means.size(); ++i) means[i] = counts[i] > 0 ? means[i] / counts[i] : std::nan("");
    scores[name] = std::move(means);
  }
  if (!cache_.empty() && cache_use_ == CacheUse::ReadWrite && (!may_keep_baselines_ || may_keep_baselines_())) {
    try {
      const nlohmann::json saved = {{"key", cache_key()}, {"positions", scores}};
      replace_text_file(cache_, with_finite_numbers(saved).dump() + "\n");
    } catch (const EnvironmentError&) {  // a cache that cannot be written is computed again next time
    }
  }
  return scores;
}

std::string summary_table(const EvaluationResult& result, const std::string& model_name, std::string_view score_name) {
  const std::vector<double>& model = result.positions.mean;
  const std::size_t points = model.size();
  std::vector<std::int64_t> counts = result.positions.count;
  if (counts.empty()) counts.assign(points, result.prompts);
  std::vector<std::size_t> scored;  // positions at which any prompt is
  for (std::size_t i = 0; i < points; ++i) {
    if (counts[i] > 0) scored.push_back(i);
  }
  std::vector<std::size_t> columns;  // positions worth showing
  for (const double share : {0.0, 0.125, 0.25, 0.5, 0.75, 1.0}) {
    if (scored.empty()) break;
    const std::size_t at =
        scored[static_cast<std::size_t>(std::lround(share * static_cast<double>(scored.size() - 1)))];
    if (columns.empty() || columns.back() != at) columns.push_back(at);
  }
  // Where outliers are at fixed positions, the 50th clean example is what is compared (Park et al. 2024, figure 4).
  if (scored.size() < points && scored.size() >= 50 &&
      std::find(columns.begin(), columns.end(), scored[49]) == columns.end()) {
    columns.insert(std::upper_bound(columns.begin(), columns.end(), scored[49]), scored[49]);
  }
  std::size_t width = std::max<std::size_t>(model_name.size(), 14);
  std::string header = fmt::format("{:<{}}  {:>10}", fmt::format("{} by examples seen", score_name), width + 8,
                                   label_of(result.headline));
  width += 8;
  for (const std::size_t at : columns) header += fmt::format("  {:>9}", fmt::format("i={}", at));
  std::string text = result.accuracy ? fmt::format("accuracy {}: share of {} prompts with the whole answer right\n",
                                                   number(*result.accuracy), result.prompts)
                                     : "";
  text += header + "\n" + std::string(header.size(), '-') + "\n";
  const auto row = [&](const std::string& name, const ScoreSummary& summary, const std::vector<double>& values) {
    text += fmt::format("{:<{}}  {:>10}", name, width, number(summary.value(result.headline)));
    for (const std::size_t at : columns) text += fmt::format("  {:>9}", number(values[at]));
    text += "\n";
  };
  // Baselines whose numbers are over less than the model's: "~", and a line for each number of prompts.
  bool any_partial = false;
  std::map<std::int64_t, std::vector<std::string>> fewer_prompts;
  row(model_name, result.summary, model);
  if (!result.positions.lower.empty()) {
    row("  5% bootstrap", result.positions.summary_lower, result.positions.lower);
    row("  95% bootstrap", result.positions.summary_upper, result.positions.upper);
  }
  for (const auto& [name, values] : result.baselines) {
    const auto known =
        std::count_if(scored.begin(), scored.end(), [&](std::size_t i) { return !std::isnan(values[i]); });
    const auto asked = result.baseline_prompts.find(name);
    const bool fewer = asked != result.baseline_prompts.end() && asked->second < result.prompts;
    if (fewer) fewer_prompts[asked->second].push_back(name);
    const bool partial = known < static_cast<std::ptrdiff_t>(scored.size());
    text += fmt::format("{:<{}}  {:>10}", name, width,
                        (partial || fewer ? "~" : "") + number(headline_of(result.headline, values, counts, true)));
    for (const std::size_t at : columns) {
      text += fmt::format("  {:>9}", std::isnan(values[at]) ? "-" : number(values[at]));
    }
    text += "\n";
    any_partial = any_partial || partial;
  }
  if (any_partial) text += "~: over some positions only; -: not computed\n";
  for (const auto& [prompts, names] : fewer_prompts) {
    text += fmt::format("~: over {} of {} prompts: {}\n", prompts, result.prompts, fmt::join(names, ", "));
  }
  return text;
}

}  // namespace graft
