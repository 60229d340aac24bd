#pragma once

#include <cmath>
#include <cstdint>

#include "engine/philox.h"
#include "tasks/prompt_sampler.h"

namespace graft {

/// One prompt of a random two-layer network: y_i = sqrt(2 / hidden) <v, relu(W x_i)>, all entries of W [hidden, dim],
/// v [hidden] and x_i ~ N(0, 1), no biases. The factor brings E[y^2] to dim.
/// Source: Garg et al. 2022, section 4; Park et al. 2024, section 3.2 (which leaves the factor out).
struct Relu2nnRegression {
  enum : std::uint32_t { kFirstLayer, kInputs, kSecondLayer };  // purposes: separate random streams
  int dim = 20;
  int hidden = 100;

  [[nodiscard]] GRAFT_HD int parameters() const { return hidden * (dim + 1); }  // W, then v
  [[nodiscard]] GRAFT_HD float parameter(const Draw& draw, int j) const {
    const int first = hidden * dim;
    if (j < first) return draw.normal(kFirstLayer, static_cast<std::uint32_t>(j));
    return draw.normal(kSecondLayer, static_cast<std::uint32_t>(j - first));
  }
  GRAFT_HD void inputs4(const Draw& draw, int block, float* x) const {
    draw.normal4(kInputs, static_cast<std::uint32_t>(block), x);
  }
  [[nodiscard]] GRAFT_HD float label(const float* parameters, const float* x) const {
    const float* second = parameters + hidden * dim;
    float sum = 0.F;
    int h = 0;
    // Four units at a time read every x once for four sums; each sum still has the order of a unit on its own.
    for (; h + 4 <= hidden; h += 4) {
      const float* w = parameters + h * dim;
      float a = 0.F;
      float b = 0.F;
      float c = 0.F;
      float d = 0.F;
      for (int j = 0; j < dim; ++j) {
        a += w[j] * x[j];
        b += w[dim + j] * x[j];
        c += w[2 * dim + j] * x[j];
        d += w[3 * dim + j] * x[j];
      }
      sum += relu(a) * second[h];
      sum += relu(b) * second[h + 1];
      sum += relu(c) * second[h + 2];
      sum += relu(d) * second[h + 3];
    }
    for (; h < hidden; ++h) {
      float a = 0.F;
      for (int j = 0; j < dim; ++j) a += parameters[h * dim + j] * x[j];
      sum += relu(a) * second[h];
    }
    return sqrtf(2.F / static_cast<float>(hidden)) * sum;
  }

 private:
  [[nodiscard]] GRAFT_HD static float relu(float value) { return value > 0.F ? value : 0.F; }
};

inline constinit Kernel<SamplePrompts<Relu2nnRegression>> sample_relu_2nn_regression{"sample_relu_2nn_regression"};

}  // namespace graft
