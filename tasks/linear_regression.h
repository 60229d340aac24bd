#pragma once

#include <cstdint>

#include "engine/philox.h"
#include "tasks/prompt_sampler.h"

namespace graft {

/// One linear-regression prompt: w, x_i ~ N(0, I), y_i = <w, x_i>, no noise, no scaling.
/// Source: Garg et al. 2022, section 3; Park et al. 2024, section 3.2.
struct LinearRegression {
  enum : std::uint32_t { kWeights, kInputs };  // purposes: separate random streams
  int dim = 20;

  [[nodiscard]] GRAFT_HD int parameters() const { return dim; }
  [[nodiscard]] GRAFT_HD float parameter(const Draw& draw, int j) const {
    return draw.normal(kWeights, static_cast<std::uint32_t>(j));
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

inline constinit Kernel<SamplePrompts<LinearRegression>> sample_linear_regression{"sample_linear_regression"};

}  // namespace graft
