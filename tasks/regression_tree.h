#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace graft {

/// A regression tree grown greedily. A node with at least two points that are not all alike in y is split in two by
/// one coordinate, x_k <= t, at the t halfway between two neighbouring values, such that
///   (sum of y on the left)^2 / (points there) + the same on the right
/// is largest, which leaves the smallest sum of squared errors. Of equally good splits the one with the lowest k, then
/// the lowest t is taken (scikit-learn draws lots). Values no more than 1e-7 apart are not told apart. A leaf answers
/// with the mean of its y.
/// Source: Breiman et al. 1984, chapter 8; the settings of scikit-learn 1.0.2's DecisionTreeRegressor.
class RegressionTree {
 public:
  struct Node {
    std::int64_t feature = -1;  // -1: a leaf
    double threshold = 0;       // x[feature] <= threshold goes left
    std::size_t left = 0, right = 0;
    double value = 0;
    std::int64_t points = 0;
  };

  /// Grows the tree to xs [points, dim] and ys [points], at least one point; `most_depth` 0: without a limit.
  RegressionTree(std::span<const float> xs, std::span<const float> ys, std::int64_t dim, std::int64_t most_depth);

  [[nodiscard]] double operator()(std::span<const float> x) const;
  [[nodiscard]] const std::vector<Node>& nodes() const { return nodes_; }  // the root first

 private:
  std::vector<Node> nodes_;
};

}  // namespace graft
