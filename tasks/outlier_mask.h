#pragma once

#include <cstdint>

#include "engine/philox.h"

namespace graft {

/// Which points of a prompt are outliers: each independently with a probability, the first one included, or a fixed
/// layout.
struct OutlierMask {
  float probability = 0.5F;
  // The fixed layout marks points spacing - 1, 2 spacing - 1, ...; nothing where spacing is 0.
  bool fixed = false;
  int spacing = 0;
  bool marks_outliers = true;  // else it marks the clean points

  /// No outliers at all.
  [[nodiscard]] static OutlierMask none() { return {0.F}; }
  /// The layout with about the share `probability` of outliers: spacing is floor(1 / min(p, 1 - p)), and the rarer kind
  /// is marked, at p = 0.5 outliers. Clean examples 49 and 50, counted from 0, are points 98 and 100 for p = 0.5,
  /// points 499 and 509 for p = 0.9. Source: the layout that krafton-ai/mambaformer-icl intends.
  [[nodiscard]] static OutlierMask fixed_layout(double probability) {
    const bool outliers = probability <= 0.5;
    const double rarer = outliers ? probability : 1 - probability;
    // 1 - 0.95 is not 0.05: without the small number its spacing would be 19
    const int spacing = rarer > 1e-9 ? static_cast<int>(1 / rarer + 1e-6) : 0;
    return {static_cast<float>(probability), true, spacing, outliers};
  }

  /// Whether point i is an outlier; `purpose` is the stream of the draw that decides.
  [[nodiscard]] GRAFT_HD bool is_outlier(const Draw& draw, std::uint32_t purpose, int i) const {
    if (!fixed) return draw.uniform(purpose, static_cast<std::uint32_t>(i)) < probability;
    const bool marked = spacing > 0 && (i + 1) % spacing == 0;
    return marked == marks_outliers;
  }
};

}  // namespace graft
