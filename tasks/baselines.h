#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// The points of one prompt.
struct PromptPoints {
  std::span<const float> xs;  // [points, dim]
  std::span<const float> ys;  // [points]
  std::int64_t points = 0;
  std::int64_t dim = 0;
};

/// A classical learner that a model's in-context learning is compared with. `predict` fills predictions[i] with its
/// answer at x_i after the points 0..i-1; all arithmetic is in double precision. It is called from several threads
/// at once and must depend on nothing but its arguments.
struct Baseline {
  const char* name;  // key in eval.jsonl
  std::function<void(const PromptPoints& prompt, std::span<double> predictions)> predict;
};

/// Adds a baseline when the file that holds it is loaded:
///   const RegisterBaseline registered{{"lasso", predict_lasso}};
struct RegisterBaseline {
  explicit RegisterBaseline(Baseline baseline);
};

/// The baseline of that name. Throws ArgumentError listing the known ones.
///   zero           0
///   averaging      <w, x_i>,  w = 1/i sum_{j<i} x_j y_j
///   knn3           mean of y over the min(i, 3) points nearest to x_i, Euclidean distance, unweighted; of equally
///                  near points the earlier one counts
///   least_squares  <w, x_i>,  w = the solution of smallest norm of min sum_{j<i} (<w, x_j> - y_j)^2; directions whose
///                  part in a fit to m points is below eps max(m, dim) of the largest count as absent
/// Without points (i = 0) each answers 0.
/// Source: Garg et al. 2022, appendix; the settings of krafton-ai/mambaformer-icl.
[[nodiscard]] const Baseline& find_baseline(std::string_view name);
/// Names of all baselines, sorted.
[[nodiscard]] std::vector<std::string> baseline_names();

/// Predictions [prompts, points] of a baseline.
///   xs  [prompts, points, dim]   ys  [prompts, points]
/// Prompts are spread over `threads` threads (0: as many as the machine has), which changes no bit of the result.
/// Throws ArgumentError if the sizes do not match.
[[nodiscard]] std::vector<double> predict(const Baseline& baseline, std::span<const float> xs,
                                          std::span<const float> ys, std::int64_t prompts, std::int64_t points,
                                          std::int64_t dim, int threads = 0);

}  // namespace graft
