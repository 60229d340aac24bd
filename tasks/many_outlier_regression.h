#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/philox.h"
#include "tasks/outlier_mask.h"
#include "tasks/prompt_sampler.h"

namespace graft {

/// One prompt of linear regression (w, x ~ N(0, I), y = <w, x>) in which most points are the same outlier: x = (1, ...,
/// 1) in all dimensions, also inactive ones, and y = 1, so that its y-token is (1, 0, ..., 0).
/// Source: Park et al. 2024, section 3.2.
struct ManyOutlierRegression {
  enum : std::uint32_t { kWeights, kInputs, kMask };  // purposes: separate random streams
  struct Outlier {};
  int dim = 20;
  double probability = 0.9;  // of the task; the mask's is that of a suite
  OutlierMask mask{0.9F};

  [[nodiscard]] GRAFT_HD int parameters() const { return dim; }  // w
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
  [[nodiscard]] GRAFT_HD bool is_outlier(const Draw& draw, int i) const { return mask.is_outlier(draw, kMask, i); }
  [[nodiscard]] GRAFT_HD Outlier outlier(const Draw& /*draw*/, int /*i*/) const { return {}; }
  [[nodiscard]] GRAFT_HD float outlier_x(const float* /*weights*/, const Outlier& /*outlier*/, int /*j*/) const {
    return 1.F;
  }
  [[nodiscard]] GRAFT_HD float outlier_y(const float* /*weights*/, const Outlier& /*outlier*/, int j) const {
    return j == 0 ? 1.F : 0.F;
  }

  /// For people, on the host: what the law is, and what a prompt's parameters say.
  [[nodiscard]] std::string text() const;
  [[nodiscard]] std::string text_of(const std::vector<float>& parameters) const;
};

inline constinit Kernel<SamplePrompts<ManyOutlierRegression>> sample_many_outlier_regression{
    "sample_many_outlier_regression"};

}  // namespace graft
