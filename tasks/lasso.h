#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace graft {

/// A growing set of points that lasso fits see through their second moments, so that a sweep over the weights costs
/// dim^2 whatever the number of points.
///   objective(w) = 1/(2 n) sum_j (<w, x_j> - y_j)^2 + alpha |w|_1,   no intercept
class Lasso {
 public:
  explicit Lasso(std::int64_t dim);

  struct Options {
    double alpha = 1;
    std::int64_t most_sweeps = 100000;
    /// A fit is done when its duality gap (of n times the objective) is at most this fraction of sum_j y_j^2. The gap
    /// is looked at when no weight moved by more than this fraction of the largest one.
    double tolerance = 1e-4;
  };

  struct Fit {
    std::vector<double> weights;  // [dim]
    std::int64_t sweeps = 0;
    double gap = 0;  // duality gap of n times the objective, so gap / n bounds the objective's distance to its minimum
  };

  void add(std::span<const float> x, double y);
  /// Cyclic coordinate descent from w = 0: w_k = S(x_k' r + w_k |x_k|^2, n alpha) / |x_k|^2 with the column x_k, the
  /// residuals r and S(a, t) = sign(a) max(|a| - t, 0). Columns of zeros keep the weight 0. Every fit starts from 0, so
  /// it depends on the points alone.
  /// Source: Friedman et al. 2007 (coordinate descent); Kim et al. 2007, section III (duality gap); the starting point,
  /// the order and the stopping rule are those of scikit-learn's Lasso.
  [[nodiscard]] Fit fit(const Options& options) const;
  [[nodiscard]] std::int64_t points() const { return points_; }

 private:
  std::size_t dim_;
  std::int64_t points_ = 0;
  std::vector<double> gram_;    // [dim, dim] sum of x x'
  std::vector<double> moment_;  // [dim] sum of x y
  double squares_ = 0;          // sum of y^2
};

}  // namespace graft
