#pragma once

#include <cstdint>

#include "engine/philox.h"
#include "tasks/prompt_sampler.h"

namespace graft {

/// One prompt of a full binary tree of `depth` decisions: at an inner node right if x[coordinate] > 0, else left; y is
/// the value at the leaf. Coordinates are uniform on all of 0 .. dim-1, whatever is active, and may repeat along a
/// path; leaves and x ~ N(0, 1). A coordinate that is set to 0 goes left.
///
/// The tree is an array of 2^(depth+1) - 1 nodes: the children of node q are 2q+1 (left) and 2q+2 (right); an inner
/// node holds its coordinate, a leaf its value.
/// Source: Garg et al. 2022, section 4; Park et al. 2024, section 3.2.
struct DecisionTree {
  enum : std::uint32_t { kCoordinates, kInputs, kLeaves };  // purposes: separate random streams
  int dim = 20;
  int depth = 4;

  [[nodiscard]] GRAFT_HD int inner_nodes() const { return (1 << depth) - 1; }
  [[nodiscard]] GRAFT_HD int parameters() const { return (2 << depth) - 1; }
  [[nodiscard]] GRAFT_HD float parameter(const Draw& draw, int node) const {
    const int inner = inner_nodes();
    if (node < inner) {
      return static_cast<float>(
          draw.below(static_cast<std::uint32_t>(dim), kCoordinates, static_cast<std::uint32_t>(node)));
    }
    return draw.normal(kLeaves, static_cast<std::uint32_t>(node - inner));
  }
  GRAFT_HD void inputs4(const Draw& draw, int block, float* x) const {
    draw.normal4(kInputs, static_cast<std::uint32_t>(block), x);
  }
  [[nodiscard]] GRAFT_HD float label(const float* nodes, const float* x) const {
    int node = 0;
    for (int level = 0; level < depth; ++level) node = 2 * node + (x[static_cast<int>(nodes[node])] > 0.F ? 2 : 1);
    return nodes[node];
  }
};

inline constinit Kernel<SamplePrompts<DecisionTree>> sample_decision_tree{"sample_decision_tree"};

}  // namespace graft
