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
  std::span<const std::uint8_t> scored = {};    // [points], 0: the point does not count (an outlier); empty: all do
  std::span<const std::uint8_t> wanted = {};    // [points], 1: an answer is asked for; empty: everywhere
  const std::function<bool()>* stop = nullptr;  // true: nobody wants the answers any more; null: somebody does

  [[nodiscard]] std::span<const float> x(std::int64_t i) const {
    return xs.subspan(static_cast<std::size_t>(i * dim), static_cast<std::size_t>(dim));
  }
  [[nodiscard]] float y(std::int64_t i) const { return ys[static_cast<std::size_t>(i)]; }
  /// The points 0 .. count-1, which the answer at x_count may use.
  [[nodiscard]] std::span<const float> first_xs(std::int64_t count) const {
    return xs.first(static_cast<std::size_t>(count * dim));
  }
  [[nodiscard]] std::span<const float> first_ys(std::int64_t count) const {
    return ys.first(static_cast<std::size_t>(count));
  }
  [[nodiscard]] bool is_scored(std::int64_t i) const {
    return scored.empty() || scored[static_cast<std::size_t>(i)] != 0;
  }
  [[nodiscard]] bool is_wanted(std::int64_t i) const {
    return wanted.empty() || wanted[static_cast<std::size_t>(i)] != 0;
  }
  [[nodiscard]] bool is_stopped() const { return stop != nullptr && (*stop)(); }
};

/// A classical learner that a model's in-context learning is compared with. `predict` fills predictions[i] with its
/// answer at x_i after the points 0..i-1, at wanted positions at least. Arithmetic is in double precision unless the
/// baseline says otherwise. It is called from several threads at once and must depend on nothing but its arguments.
/// Whatever takes more than microseconds a point returns before the next one when prompt.is_stopped().
struct Baseline {
  const char* name;  // key in eval.jsonl
  std::function<void(const PromptPoints& prompt, std::span<double> predictions)> predict;
  bool expensive = false;  // milliseconds and more an answer: an evaluation asks for some prompts and positions only
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
///   least_squares_clean  the same with the sum over scored points only: an oracle, told which points are outliers
///   lasso_1, lasso_0.1, lasso_0.01, lasso_0.001, lasso_0.0001  <w, x_i>, w = argmin of the squared error with
///                  1, 0.1, ... |w|_1 (tasks/lasso.h)
///   tree_depth4, tree_full  a regression tree of depth 4 at most, or of any depth (tasks/regression_tree.h); expensive
///   boosted_trees  100 trees of depth 6 at most, one after the other (tasks/boosted_trees.h); expensive
///   two_layer_net  a small network trained on the points (tasks/two_layer_net.h); expensive
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

struct PredictOptions {
  int threads = 0;                            // 0: as many as the machine has
  std::span<const std::uint8_t> scored = {};  // [prompts, points] as PromptPoints::scored; empty: all are
  std::span<const std::uint8_t> wanted = {};  // [points], 1: an answer is asked for; empty: everywhere
  /// Asked before every prompt and, by most baselines, before every point, from all threads at once: true ends the
  /// work.
  std::function<bool()> stop = {};
  /// Told after every prompt how many are done; one call at a time, from any thread.
  std::function<void(std::int64_t done)> progress = {};
};
/// The same with more to say: predictions where none is wanted are NaN. Empty if options.stop ended it.
[[nodiscard]] std::vector<double> predict(const Baseline& baseline, std::span<const float> xs,
                                          std::span<const float> ys, std::int64_t prompts, std::int64_t points,
                                          std::int64_t dim, const PredictOptions& options);

/// Which of `points` positions to ask an expensive baseline for: round(k (points - 1) / count) for k = 0 .. count, so
/// the last one, those at a half, a quarter, ... of the prompt where count is a power of 2, and 0, which costs nothing.
/// [points], 1: ask.
[[nodiscard]] std::vector<std::uint8_t> spread_positions(std::int64_t points, std::int64_t count);

}  // namespace graft
