#include "tasks/regression_tree.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/require.h"
#include "tasks/baselines.h"

namespace graft {
namespace {

constexpr double kSameValue = 1e-7;

struct Split {
  double gain = -std::numeric_limits<double>::infinity();
  std::int64_t feature = -1;
  double threshold = 0;
};

/// Grows a tree depth first: a node's points are a range of `order`.
class Grower {
 public:
  Grower(std::span<const float> xs, std::span<const float> ys, std::int64_t dim, std::int64_t most_depth,
         std::vector<RegressionTree::Node>& nodes)
      : xs_(xs), ys_(ys), dim_(static_cast<std::size_t>(dim)), most_depth_(most_depth), nodes_(nodes) {
    order_.resize(ys.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    values_.resize(ys.size());
  }

  std::size_t grow(std::size_t first, std::size_t last, std::int64_t depth) {
    const std::size_t node = nodes_.size();
    nodes_.emplace_back();
    const auto count = static_cast<double>(last - first);
    double sum = 0, squares = 0;
    for (std::size_t i = first; i < last; ++i) {
      const double y = ys_[order_[i]];
      sum += y;
      squares += y * y;
    }
    const double mean = sum / count;
    nodes_[node].value = mean;
    nodes_[node].points = static_cast<std::int64_t>(last - first);
    const double variance = squares / count - mean * mean;
    if (last - first < 2 || (most_depth_ > 0 && depth >= most_depth_) ||
        variance <= std::numeric_limits<double>::epsilon()) {
      return node;
    }
    const Split split = best_split(first, last, sum);
    if (split.feature < 0) return node;

    const auto middle = std::stable_partition(
        order_.begin() + static_cast<std::ptrdiff_t>(first), order_.begin() + static_cast<std::ptrdiff_t>(last),
        [&](std::size_t i) { return double{value(i, static_cast<std::size_t>(split.feature))} <= split.threshold; });
    const auto half = static_cast<std::size_t>(middle - order_.begin());
    nodes_[node].feature = split.feature;
    nodes_[node].threshold = split.threshold;
    const std::size_t left = grow(first, half, depth + 1);
    nodes_[node].left = left;  // in a line of its own: growing moves the nodes
    const std::size_t right = grow(half, last, depth + 1);
    nodes_[node].right = right;
    return node;
  }

 private:
  struct Value {
    float x;
    float y;
  };

  [[nodiscard]] float value(std::size_t i, std::size_t feature) const { return xs_[i * dim_ + feature]; }

  Split best_split(std::size_t first, std::size_t last, double sum) {
    Split best;
    const std::size_t count = last - first;
    for (std::size_t feature = 0; feature < dim_; ++feature) {
      for (std::size_t i = 0; i < count; ++i) {
        values_[i] = {value(order_[first + i], feature), ys_[order_[first + i]]};
      }
      const auto end = values_.begin() + static_cast<std::ptrdiff_t>(count);
      std::stable_sort(values_.begin(), end, [](const Value& a, const Value& b) { return a.x < b.x; });
      double left_sum = 0;
      for (std::size_t i = 1; i < count; ++i) {
        left_sum += double{values_[i - 1].y};
        const double below = values_[i - 1].x, above = values_[i].x;
        if (above <= below + kSameValue) continue;
        const double right_sum = sum - left_sum;
        const double gain =
            left_sum * left_sum / static_cast<double>(i) + right_sum * right_sum / static_cast<double>(count - i);
        if (gain > best.gain) {
          const double halfway = below / 2 + above / 2;
          // Halfway may round to the upper one, which belongs to the right.
          best = {gain, static_cast<std::int64_t>(feature), halfway < above ? halfway : below};
        }
      }
    }
    return best;
  }

  std::span<const float> xs_, ys_;
  std::size_t dim_;
  std::int64_t most_depth_;
  std::vector<RegressionTree::Node>& nodes_;
  std::vector<std::size_t> order_;
  std::vector<Value> values_;
};

Baseline tree_baseline(const char* name, std::int64_t most_depth) {
  const auto predict_tree = [most_depth](const PromptPoints& prompt, std::span<double> predictions) {
    for (std::int64_t i = 0; i < prompt.points; ++i) {
      if (prompt.is_stopped()) return;
      double prediction = 0;
      if (i > 0 && prompt.is_wanted(i)) {
        prediction = RegressionTree(prompt.first_xs(i), prompt.first_ys(i), prompt.dim, most_depth)(prompt.x(i));
      }
      predictions[static_cast<std::size_t>(i)] = prediction;
    }
  };
  return {name, predict_tree, true};
}

const RegisterBaseline shallow{tree_baseline("tree_depth4", 4)};
const RegisterBaseline full{tree_baseline("tree_full", 0)};

}  // namespace

RegressionTree::RegressionTree(std::span<const float> xs, std::span<const float> ys, std::int64_t dim,
                               std::int64_t most_depth) {
  require(!ys.empty() && dim >= 1 && most_depth >= 0, "regression tree: {} points of {} dimensions, depth {}",
          ys.size(), dim, most_depth);
  require(xs.size() == ys.size() * static_cast<std::size_t>(dim), "regression tree: {} inputs, expected {} x {}",
          xs.size(), ys.size(), dim);
  Grower(xs, ys, dim, most_depth, nodes_).grow(0, ys.size(), 0);
}

double RegressionTree::operator()(std::span<const float> x) const {
  const Node* node = &nodes_.front();
  while (node->feature >= 0) {
    const double value = x[static_cast<std::size_t>(node->feature)];
    node = &nodes_[value <= node->threshold ? node->left : node->right];
  }
  return node->value;
}

}  // namespace graft
