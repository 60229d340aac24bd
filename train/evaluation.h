#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/step_graph.h"
#include "tasks/statistics.h"
#include "train/session.h"

namespace graft {

/// Mean score of each baseline at each position of the evaluation prompts; NaN where it was not asked, or nothing is
/// scored.
using BaselineScores = std::map<std::string, std::vector<double>>;

/// The evaluation every task has: fresh prompts as in training.
inline const std::string kStandardSuite = "standard";

struct EvaluationResult {
  std::int64_t step = 0;
  std::string suite = kStandardSuite;
  std::int64_t prompts = 0;
  PositionStatistics positions;
  ScoreSummary summary;
  Headline headline = Headline::MeanFromSecond;  // of the suite
  std::optional<double> accuracy;  // share of prompts answered, where the task has answers: see Task::answer_points()
  BaselineScores baselines;
  std::map<std::string, std::int64_t> baseline_prompts;  // that each of them answered: expensive ones answer few
  double seconds = 0;
  bool interrupted = false;  // by watch()'s `stop`: something is missing

  /// The line of eval.jsonl.
  [[nodiscard]] nlohmann::ordered_json json() const;
};

/// Evaluates a session's model on a fixed set of prompts: examples 0..prompts-1 of the evaluation domain of run.seed,
/// all dimensions, final number of points. The batch size does not change the set. The first run is eager, later ones
/// replay a captured graph; both give the same bits.
class Evaluator {
 public:
  enum class CacheUse : std::uint8_t { ReadWrite, ReadOnly };
  /// `cache` is a file that keeps the baselines' scores between processes; empty: none. `suite` is one of the task's.
  Evaluator(Session& session, std::filesystem::path cache, CacheUse cache_use = CacheUse::ReadWrite,
            const std::string& suite = kStandardSuite);

  /// Takes the memory of a batch, which run() does otherwise; an OutOfMemoryError says which key to lower.
  void plan();
  [[nodiscard]] EvaluationResult run(std::int64_t step);

  /// Expensive baselines tell `say` from time to time how far they are. When `stop` is true an evaluation ends, between
  /// batches, resamples, or points of a baseline, with a result that says so, and a later one does its work. Either may
  /// be empty. Both are called from other threads too.
  void watch(std::function<bool()> stop, std::function<void(const std::string&)> say);
  /// The cache is written only where `may` is true then: its directory may have moved away since.
  void keep_baselines_if(std::function<bool()> may) { may_keep_baselines_ = std::move(may); }

 private:
  [[nodiscard]] BaselineScores load_or_compute_baselines();
  /// Tells say_ now and then how many prompts are done; empty without it.
  [[nodiscard]] std::function<void(std::int64_t)> report(const std::string& baseline, std::int64_t prompts) const;
  [[nodiscard]] std::string cache_key() const;
  /// Prompts that a baseline answers.
  [[nodiscard]] std::int64_t prompts_for(const std::string& baseline) const;
  [[nodiscard]] bool stopped() const { return stop_ && stop_(); }
  [[nodiscard]] EvaluationResult interrupted(std::int64_t step) const;
  Session& session_;
  std::string suite_;
  std::unique_ptr<Task> suite_task_;  // null: the experiment's own
  const Task& task_;
  std::filesystem::path cache_;
  CacheUse cache_use_;
  Session::State state_;
  std::int64_t sequences_ = 0;
  Tensor scores_;  // [sequences, N] stream dtype
  std::unique_ptr<StepGraph> graph_;
  BaselineScores baselines_;
  bool baselines_known_ = false;
  std::function<bool()> may_keep_baselines_;
  std::function<bool()> stop_;
  std::function<void(const std::string&)> say_;
};

/// The table a run ends with: each learner's error over positions, the model's with its bootstrap band; above it the
/// share of prompts answered, where the task has answers.
[[nodiscard]] std::string summary_table(const EvaluationResult& result, const std::string& model_name,
                                        std::string_view score_name);

}  // namespace graft
