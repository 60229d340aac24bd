#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/step_graph.h"
#include "tasks/statistics.h"
#include "train/session.h"

namespace graft {

/// Mean score of each baseline at each position of the evaluation prompts.
using BaselineScores = std::map<std::string, std::vector<double>>;

struct EvaluationResult {
  std::int64_t step = 0;
  std::string suite = "standard";
  std::int64_t prompts = 0;
  PositionStatistics positions;
  ScoreSummary summary;
  BaselineScores baselines;
  double seconds = 0;

  /// The line of eval.jsonl.
  [[nodiscard]] nlohmann::ordered_json json() const;
};

/// Evaluates a session's model on a fixed set of prompts: examples 0..prompts-1 of the evaluation domain of run.seed,
/// all dimensions, final number of points. The batch size does not change the set. The first run is eager, later ones
/// replay a captured graph; both give the same bits.
class Evaluator {
 public:
  enum class CacheUse : std::uint8_t { ReadWrite, ReadOnly };
  /// `cache` is a file that keeps the baselines' scores between processes; empty: none.
  Evaluator(Session& session, std::filesystem::path cache, CacheUse cache_use = CacheUse::ReadWrite);

  [[nodiscard]] EvaluationResult run(std::int64_t step);

 private:
  [[nodiscard]] BaselineScores load_or_compute_baselines();
  [[nodiscard]] std::string cache_key() const;
  Session& session_;
  std::filesystem::path cache_;
  CacheUse cache_use_;
  Session::State state_;
  EvalBuffers buffers_;
  std::unique_ptr<StepGraph> graph_;
  BaselineScores baselines_;
  bool baselines_known_ = false;
};

/// The table a run ends with: each learner's error over positions, the model's with its bootstrap band.
[[nodiscard]] std::string summary_table(const EvaluationResult& result, const std::string& model_name,
                                        std::string_view score_name);

}  // namespace graft
