#include "tasks/boosted_trees.h"

#include <algorithm>
#include <numeric>

#include "engine/require.h"
#include "tasks/baselines.h"

namespace graft {
namespace {

constexpr float kLeastGain = 1e-6F;

struct Sums {
  double gradient = 0;
  double weight = 0;  // sum of second derivatives: points
};

/// Grows one tree after the other, level by level: one pass over each coordinate's sorted points serves all nodes of a
/// level.
class Booster {
 public:
  Booster(std::span<const float> xs, std::span<const float> ys, std::int64_t dim, const BoostedTrees::Options& options)
      : xs_(xs),
        ys_(ys),
        dim_(static_cast<std::size_t>(dim)),
        points_(ys.size()),
        options_(options),
        predictions_(points_, options.base_score),
        gradients_(points_),
        node_of_(points_),
        order_(points_ * dim_) {
    for (std::size_t feature = 0; feature < dim_; ++feature) {
      const auto first = order_.begin() + static_cast<std::ptrdiff_t>(feature * points_);
      const auto last = first + static_cast<std::ptrdiff_t>(points_);
      std::iota(first, last, std::size_t{0});
      // Highest first, and of equal values the later point first: the order XGBoost adds up in.
      std::stable_sort(first, last, [&](std::size_t a, std::size_t b) { return x(a, feature) < x(b, feature); });
      std::reverse(first, last);
    }
  }

  BoostedTrees::Tree grow() {
    for (std::size_t i = 0; i < points_; ++i) gradients_[i] = predictions_[i] - ys_[i];
    std::fill(node_of_.begin(), node_of_.end(), 0);
    tree_.assign(1, {});
    candidates_.assign(1, {});
    std::vector<std::size_t> open = {0};
    measure(open);
    for (int depth = 0; depth < options_.most_depth && !open.empty(); ++depth) {
      for (std::size_t feature = 0; feature < dim_; ++feature) scan(feature, open);
      open = split(open);
      measure(open);
    }
    for (std::size_t i = 0; i < points_; ++i) predictions_[i] += tree_[node_of_[i]].value;
    return tree_;
  }

 private:
  struct Candidate {
    Sums all;        // over the node's points
    float base = 0;  // the node's own part in a gain
    bool open = false;
    float gain = 0;  // of the best split so far
    std::int64_t feature = -1;
    float threshold = 0;
    // While one coordinate is scanned: what lies on the right so far, and the last value seen.
    Sums right;
    float last = 0;
  };

  [[nodiscard]] float x(std::size_t i, std::size_t feature) const { return xs_[i * dim_ + feature]; }
  [[nodiscard]] double quality(const Sums& sums) const {
    return sums.gradient * sums.gradient / (sums.weight + double{options_.lambda});
  }

  /// Sums, and what the node would answer as a leaf.
  void measure(const std::vector<std::size_t>& open) {
    for (const std::size_t node : open) candidates_[node].open = true;
    for (std::size_t i = 0; i < points_; ++i) {
      Candidate& node = candidates_[node_of_[i]];
      if (!node.open) continue;
      node.all.gradient += double{gradients_[i]};
      node.all.weight += 1;
    }
    for (const std::size_t node : open) {
      const Sums& all = candidates_[node].all;
      candidates_[node].base = static_cast<float>(quality(all));
      tree_[node].value = static_cast<float>(-all.gradient / (all.weight + double{options_.lambda})) * options_.eta;
    }
  }

  /// The best splits by one coordinate, from its highest value down.
  void scan(std::size_t feature, const std::vector<std::size_t>& open) {
    for (const std::size_t node : open) candidates_[node].right = {};
    const auto least = double{options_.min_child_weight};
    for (std::size_t k = 0; k < points_; ++k) {
      const std::size_t i = order_[feature * points_ + k];
      Candidate& node = candidates_[node_of_[i]];
      if (!node.open) continue;
      const float value = x(i, feature);
      if (node.right.weight > 0 && value != node.last && node.right.weight >= least) {
        const Sums left = {node.all.gradient - node.right.gradient, node.all.weight - node.right.weight};
        if (left.weight >= least) {
          const float gain = static_cast<float>(quality(left) + quality(node.right)) - node.base;
          // Coordinates come in ascending order, so an equal gain never replaces one with a lower coordinate.
          if (gain > node.gain) {
            const float halfway = (value + node.last) * 0.5F;
            node.gain = gain;
            node.feature = static_cast<std::int64_t>(feature);
            node.threshold = halfway == value ? node.last : halfway;
          }
        }
      }
      node.right.gradient += double{gradients_[i]};
      node.right.weight += 1;
      node.last = value;
    }
  }

  /// Splits what is worth it and returns the new level.
  std::vector<std::size_t> split(const std::vector<std::size_t>& open) {
    std::vector<std::size_t> next;
    for (const std::size_t node : open) {
      candidates_[node].open = false;
      if (candidates_[node].feature < 0 || candidates_[node].gain <= kLeastGain) continue;
      tree_[node].feature = candidates_[node].feature;
      tree_[node].threshold = candidates_[node].threshold;
      tree_[node].left = tree_.size();
      tree_[node].right = tree_.size() + 1;
      next.insert(next.end(), {tree_.size(), tree_.size() + 1});
      tree_.resize(tree_.size() + 2);
      candidates_.resize(tree_.size());
    }
    for (std::size_t i = 0; i < points_; ++i) {
      const BoostedTrees::Node& node = tree_[node_of_[i]];
      if (node.feature < 0) continue;
      node_of_[i] = x(i, static_cast<std::size_t>(node.feature)) < node.threshold ? node.left : node.right;
    }
    return next;
  }

  std::span<const float> xs_, ys_;
  std::size_t dim_, points_;
  BoostedTrees::Options options_;
  std::vector<float> predictions_, gradients_;  // [points]
  std::vector<std::size_t> node_of_;            // [points]
  std::vector<std::size_t> order_;              // [dim, points], highest value first
  BoostedTrees::Tree tree_;
  std::vector<Candidate> candidates_;  // one a node
};

void predict_boosted_trees(const PromptPoints& prompt, std::span<double> predictions) {
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    if (prompt.is_stopped()) return;
    double prediction = 0;
    if (i > 0 && prompt.is_wanted(i)) {
      prediction = BoostedTrees(prompt.first_xs(i), prompt.first_ys(i), prompt.dim)(prompt.x(i));
    }
    predictions[static_cast<std::size_t>(i)] = prediction;
  }
}

const RegisterBaseline registered{{"boosted_trees", predict_boosted_trees, true}};

}  // namespace

BoostedTrees::BoostedTrees(std::span<const float> xs, std::span<const float> ys, std::int64_t dim,
                           const Options& options)
    : base_score_(options.base_score) {
  require(!ys.empty() && dim >= 1, "boosted trees: {} points of {} dimensions, expected at least one", ys.size(), dim);
  require(xs.size() == ys.size() * static_cast<std::size_t>(dim), "boosted trees: {} inputs, expected {} x {}",
          xs.size(), ys.size(), dim);
  require(options.trees >= 0 && options.most_depth >= 0 && options.lambda >= 0,
          "boosted trees: {} trees of depth {}, lambda {}, expected nothing below 0", options.trees, options.most_depth,
          options.lambda);
  Booster booster(xs, ys, dim, options);
  for (int tree = 0; tree < options.trees; ++tree) trees_.push_back(booster.grow());
}

float BoostedTrees::operator()(std::span<const float> x) const {
  float sum = base_score_;
  for (const Tree& tree : trees_) {
    const Node* node = &tree.front();
    while (node->feature >= 0) {
      node = &tree[x[static_cast<std::size_t>(node->feature)] < node->threshold ? node->left : node->right];
    }
    sum += node->value;
  }
  return sum;
}

}  // namespace graft
