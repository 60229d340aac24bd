#pragma once

#include <cstdint>

#include "engine/philox.h"
#include "tasks/prompt_sampler.h"
#include "tasks/random_subset.h"

namespace graft {

/// One sparse linear-regression prompt: y_i = <w, x_i>, x_i ~ N(0, I), no noise, no scaling. `sparsity` coordinates of
/// w, a uniformly random subset of the active ones, are N(0, 1); the others are 0. Source: Garg et al. 2022, section 4;
/// Park et al. 2024, section 3.2.
struct SparseLinearRegression {
  enum : std::uint32_t { kWeights, kInputs, kKept };  // purposes: separate random streams
  int dim = 20;
  int sparsity = 3;

  [[nodiscard]] GRAFT_HD int parameters() const { return dim; }  // w
  [[nodiscard]] GRAFT_HD float parameter(const Draw& draw, int j) const {
    return draw.normal(kWeights, static_cast<std::uint32_t>(j));
  }
  GRAFT_HD void settle(const Draw& draw, int active, float* weights) const {
    RandomSubset kept(active, sparsity);
    for (int j = 0; j < dim; ++j) {
      if (j >= active || !kept.takes_next(draw, kKept)) weights[j] = 0.F;
    }
  }
  GRAFT_HD void inputs4(const Draw& draw, int block, float* x) const {
    draw.normal4(kInputs, static_cast<std::uint32_t>(block), x);
  }
  [[nodiscard]] GRAFT_HD float label(const float* weights, const float* x) const {
    float sum = 0.F;
    for (int j = 0; j < dim; ++j) sum += weights[j] * x[j];
    return sum;
  }
};

inline constinit Kernel<SamplePrompts<SparseLinearRegression>> sample_sparse_linear_regression{
    "sample_sparse_linear_regression"};

}  // namespace graft
