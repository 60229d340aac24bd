#include "tasks/lasso.h"

#include <algorithm>
#include <cmath>

#include "engine/require.h"
#include "tasks/baselines.h"

namespace graft {
namespace {

double soft_threshold(double value, double threshold) {
  return std::copysign(std::max(std::abs(value) - threshold, 0.0), value);
}

void predict_lasso(double alpha, const PromptPoints& prompt, std::span<double> predictions) {
  Lasso lasso(prompt.dim);
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    if (prompt.is_stopped()) return;
    double prediction = 0;
    if (i > 0 && prompt.is_wanted(i)) {
      const std::vector<double> weights = lasso.fit({.alpha = alpha}).weights;
      for (std::size_t k = 0; k < weights.size(); ++k) prediction += weights[k] * double{prompt.x(i)[k]};
    }
    predictions[static_cast<std::size_t>(i)] = prediction;
    lasso.add(prompt.x(i), prompt.y(i));
  }
}

Baseline lasso_baseline(const char* name, double alpha) {
  return {name, [alpha](const PromptPoints& prompt, std::span<double> predictions) {
            predict_lasso(alpha, prompt, predictions);
          }};
}

const RegisterBaseline registered[] = {
    RegisterBaseline{lasso_baseline("lasso_1", 1)}, RegisterBaseline{lasso_baseline("lasso_0.1", 0.1)},
    RegisterBaseline{lasso_baseline("lasso_0.01", 0.01)}, RegisterBaseline{lasso_baseline("lasso_0.001", 0.001)},
    RegisterBaseline{lasso_baseline("lasso_0.0001", 0.0001)}};

}  // namespace

Lasso::Lasso(std::int64_t dim)
    : dim_(static_cast<std::size_t>(dim)),
      gram_(static_cast<std::size_t>(dim * dim)),
      moment_(static_cast<std::size_t>(dim)) {}

void Lasso::add(std::span<const float> x, double y) {
  require(x.size() == dim_, "lasso: a point of {} dimensions, expected {}", x.size(), dim_);
  for (std::size_t k = 0; k < dim_; ++k) {
    for (std::size_t l = 0; l < dim_; ++l) gram_[k * dim_ + l] += double{x[k]} * double{x[l]};
    moment_[k] += double{x[k]} * y;
  }
  squares_ += y * y;
  ++points_;
}

Lasso::Fit Lasso::fit(const Options& options) const {
  require(points_ > 0, "lasso: no points to fit to");
  require(options.alpha > 0 && options.tolerance > 0 && options.most_sweeps > 0,
          "lasso: alpha {}, tolerance {}, {} sweeps, expected more than 0 of each", options.alpha, options.tolerance,
          options.most_sweeps);
  const double penalty = options.alpha * static_cast<double>(points_);
  Fit fit;
  std::vector<double>& weights = fit.weights;
  weights.assign(dim_, 0.0);
  std::vector<double> slopes = moment_;  // X' (y - X w)

  // With theta = r scaled down until no |x_k' theta| exceeds the penalty, primal minus dual is
  // |r|^2 (1 + s^2) / 2 + penalty |w|_1 - s r'y, s the scale.
  const auto duality_gap = [&] {
    double largest = 0, norm = 0, w_moment = 0, w_slopes = 0;
    for (std::size_t k = 0; k < dim_; ++k) {
      largest = std::max(largest, std::abs(slopes[k]));
      norm += std::abs(weights[k]);
      w_moment += weights[k] * moment_[k];
      w_slopes += weights[k] * slopes[k];
    }
    const double scale = largest > penalty ? penalty / largest : 1.0;
    const double residual_squares = squares_ - w_moment - w_slopes;
    return 0.5 * residual_squares * (1 + scale * scale) + penalty * norm - scale * (squares_ - w_moment);
  };

  const double enough = options.tolerance * squares_;
  while (fit.sweeps < options.most_sweeps) {
    ++fit.sweeps;
    double largest_weight = 0, largest_change = 0;
    for (std::size_t k = 0; k < dim_; ++k) {
      const double* row = &gram_[k * dim_];
      if (row[k] == 0) continue;
      const double weight = soft_threshold(slopes[k] + weights[k] * row[k], penalty) / row[k];
      const double change = weight - weights[k];
      if (change != 0) {
        for (std::size_t l = 0; l < dim_; ++l) slopes[l] -= change * row[l];
        weights[k] = weight;
      }
      largest_weight = std::max(largest_weight, std::abs(weight));
      largest_change = std::max(largest_change, std::abs(change));
    }
    if (largest_change <= options.tolerance * largest_weight || fit.sweeps == options.most_sweeps) {
      fit.gap = duality_gap();
      // A fit that moves no more is as good as it gets, whatever rounding left in the gap.
      if (fit.gap <= enough || largest_change == 0) break;
    }
  }
  return fit;
}

}  // namespace graft
