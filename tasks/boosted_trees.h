#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace graft {

/// Gradient boosting of regression trees for the squared error: each tree is grown to what the ones before it left,
///   g_j = prediction_j - y_j,   H = number of points (the loss has second derivative 1),
/// a node splits by x_k < t where
///   G_left^2 / (H_left + lambda) + G_right^2 / (H_right + lambda) - G^2 / (H + lambda),   G = sum of g,
/// is largest over all k and t, if that is above 1e-6, and a leaf adds -eta G / (H + lambda). t is halfway between two
/// neighbouring values. Of equally good splits the one with the lowest k, then the highest t is taken. Gradients,
/// gains, thresholds and predictions are float32 and sums double, as in XGBoost, so that the same splits tie in both.
/// Source: Chen & Guestrin 2016, sections 2 and 3.1; XGBoost 1.6.1 (tree_method exact, colmaker).
class BoostedTrees {
 public:
  struct Options {
    int trees = 100;
    int most_depth = 6;
    float eta = 0.3F;
    float lambda = 1;
    float min_child_weight = 1;  // least H of a child
    float base_score = 0.5F;     // prediction before the first tree
  };

  /// Fits to xs [points, dim] and ys [points], at least one point.
  BoostedTrees(std::span<const float> xs, std::span<const float> ys, std::int64_t dim, const Options& options);
  BoostedTrees(std::span<const float> xs, std::span<const float> ys, std::int64_t dim)
      : BoostedTrees(xs, ys, dim, Options{}) {}

  [[nodiscard]] float operator()(std::span<const float> x) const;

  struct Node {
    std::int64_t feature = -1;  // -1: a leaf
    float threshold = 0;        // x[feature] < threshold goes left
    std::size_t left = 0, right = 0;
    float value = 0;
  };
  using Tree = std::vector<Node>;  // the root first
  [[nodiscard]] const std::vector<Tree>& trees() const { return trees_; }

 private:
  float base_score_;
  std::vector<Tree> trees_;
};

}  // namespace graft
