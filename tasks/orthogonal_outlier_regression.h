#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/philox.h"
#include "tasks/outlier_mask.h"
#include "tasks/prompt_sampler.h"

namespace graft {

/// How orthogonal outliers are made.
enum class OrthogonalOutliers : std::uint8_t { Paper, Code };

/// One prompt of linear regression (w, x ~ N(0, I), y = <w, x>) with outliers whose x- and y-token are vectors of a
/// plane. Outliers have all dimensions, also inactive ones; their y-token is the whole vector, without zeros behind a
/// number.
///
/// Paper: u and v are two N(0, I) vectors minus their projections on the prompt's w; an outlier is
///   x = (a u + b v) / (a^2 + b^2),  y = (c u + d v) / (c^2 + d^2),  a, b, c, d ~ N(0, 1) for each outlier.
/// Code: x and y have a plane each, made from an unrelated w' ~ N(0, I); v is orthogonal to u as well; and one pair
///   a, b ~ N(0, 1) each for the whole prompt, so that all its outliers are the same:
///   x = a' u + b' v,  a' = a / (a^2 + b^2),  b' = b / (a'^2 + b^2).
/// Source: Park et al. 2024, appendix (Paper); krafton-ai/mambaformer-icl (Code).
struct OrthogonalOutlierRegression {
  // purposes: separate random streams
  enum : std::uint32_t { kWeights, kInputs, kMask, kPlane, kCoefficients, kOtherPlane };
  struct Outlier {
    float xu = 0, xv = 0, yu = 0, yv = 0;  // x = xu u + xv v, y = yu u + yv v
  };
  int dim = 20;
  double probability = 0.5;  // of the task; the mask's is that of a suite
  OutlierMask mask{0.5F};
  OrthogonalOutliers variant = OrthogonalOutliers::Paper;

  /// Paper: w, u, v. Code: w, outliers' x, w', v, outliers' y, w', v.
  [[nodiscard]] GRAFT_HD int parameters() const { return (variant == OrthogonalOutliers::Paper ? 3 : 7) * dim; }
  [[nodiscard]] GRAFT_HD float parameter(const Draw& draw, int j) const {
    if (j < dim) return draw.normal(kWeights, static_cast<std::uint32_t>(j));
    if (j < 4 * dim) return draw.normal(kPlane, static_cast<std::uint32_t>(j - dim));
    return draw.normal(kOtherPlane, static_cast<std::uint32_t>(j - 4 * dim));
  }
  GRAFT_HD void settle(const Draw& draw, int /*active*/, float* parameters) const {
    float* u = parameters + dim;
    if (variant == OrthogonalOutliers::Paper) {
      remove_projection(parameters, u);
      remove_projection(parameters, u + dim);
      return;
    }
    float coefficients[4];
    draw.normal4(kCoefficients, 0, coefficients);
    settle_code(u, coefficients[0], coefficients[1]);
    settle_code(u + 3 * dim, coefficients[2], coefficients[3]);
  }
  GRAFT_HD void inputs4(const Draw& draw, int block, float* x) const {
    draw.normal4(kInputs, static_cast<std::uint32_t>(block), x);
  }
  [[nodiscard]] GRAFT_HD float label(const float* weights, const float* x) const { return dot(weights, x); }

  [[nodiscard]] GRAFT_HD bool is_outlier(const Draw& draw, int i) const { return mask.is_outlier(draw, kMask, i); }
  [[nodiscard]] GRAFT_HD Outlier outlier(const Draw& draw, int i) const {
    if (variant == OrthogonalOutliers::Code) return {};
    float c[4];
    draw.normal4(kCoefficients, static_cast<std::uint32_t>(i), c);
    const float x_scale = reciprocal(c[0] * c[0] + c[1] * c[1]);
    const float y_scale = reciprocal(c[2] * c[2] + c[3] * c[3]);
    return {x_scale * c[0], x_scale * c[1], y_scale * c[2], y_scale * c[3]};
  }
  [[nodiscard]] GRAFT_HD float outlier_x(const float* parameters, const Outlier& outlier, int j) const {
    if (variant == OrthogonalOutliers::Code) return parameters[dim + j];
    return outlier.xu * parameters[dim + j] + outlier.xv * parameters[2 * dim + j];
  }
  [[nodiscard]] GRAFT_HD float outlier_y(const float* parameters, const Outlier& outlier, int j) const {
    if (variant == OrthogonalOutliers::Code) return parameters[4 * dim + j];
    return outlier.yu * parameters[dim + j] + outlier.yv * parameters[2 * dim + j];
  }

  /// For people, on the host: what the law is, and what a prompt's parameters say.
  [[nodiscard]] std::string text() const;
  [[nodiscard]] std::string text_of(const std::vector<float>& parameters) const;

 private:
  [[nodiscard]] GRAFT_HD float dot(const float* a, const float* b) const {
    float sum = 0.F;
    for (int j = 0; j < dim; ++j) sum += a[j] * b[j];
    return sum;
  }
  /// Two normals of one Box-Muller pair are both 0 once in 2^24 times; that outlier is the zero vector.
  [[nodiscard]] GRAFT_HD static float reciprocal(float square) { return square > 0.F ? 1.F / square : 0.F; }
  GRAFT_HD void remove_projection(const float* on, float* from) const {
    const float scale = dot(on, from) * reciprocal(dot(on, on));
    for (int j = 0; j < dim; ++j) from[j] -= scale * on[j];
  }
  /// In: u, w', v as drawn, [dim] each; out: u is the outlier's vector.
  GRAFT_HD void settle_code(float* u, float a, float b) const {
    const float* normal = u + dim;
    float* v = u + 2 * dim;
    remove_projection(normal, u);
    remove_projection(normal, v);
    remove_projection(u, v);
    a *= reciprocal(a * a + b * b);
    b *= reciprocal(a * a + b * b);
    for (int j = 0; j < dim; ++j) u[j] = a * u[j] + b * v[j];
  }
};

inline constinit Kernel<SamplePrompts<OrthogonalOutlierRegression>> sample_orthogonal_outlier_regression{
    "sample_orthogonal_outlier_regression"};

}  // namespace graft
