#pragma once
// Prompts of a two-layer network with its hidden layer shown. Free of fmt.

#include <cmath>
#include <cstdint>

#include "engine/kernel.h"
#include "engine/philox.h"
#include "engine/step_state.h"
#include "engine/tensor.h"
#include "tasks/selection.h"

namespace graft {

/// One prompt: x_i ~ N(0, I_dim), s_i = relu(W x_i) with W [hidden, dim] ~ N(0, 2 / hidden), y_i = <v, s_i> with
/// v ~ N(0, I_hidden). E |s_i|^2 = E y_i^2 = dim.
///
/// A point is three tokens x_i, s_i, y_i with read-ins of their own: a token has the columns
///   [ x (dim) | 1 | s (hidden) | 1 | y | 1 ],
/// of which each kind fills its own group, the 1 being the read-in's bias, and leaves the others 0. Predictions have
/// hidden + 1 columns: the s predicted at x-tokens in the first, the y predicted at s-tokens in the last.
/// Source: Park et al. 2024, section 3.2 and appendix A; Li et al. 2023, "Dissecting Chain-of-Thought", section 3.
struct ChainOfThought {
  enum : std::uint32_t { kInputs, kHidden, kReadOut };  // purposes: separate random streams
  static constexpr int kMost = 128;                     // of dim and of hidden: a network fits into shared memory
  int dim = 10;
  int hidden = 8;

  [[nodiscard]] GRAFT_HD int parameters() const { return hidden * dim + hidden; }  // W, then v
  [[nodiscard]] GRAFT_HD float parameter(const Draw& draw, int j) const {
    if (j >= hidden * dim) return draw.normal(kReadOut, static_cast<std::uint32_t>(j - hidden * dim));
    return sqrtf(2.F / static_cast<float>(hidden)) * draw.normal(kHidden, static_cast<std::uint32_t>(j));
  }
  /// Floats that an x takes while it is drawn, four at a time: the rest is not used.
  [[nodiscard]] GRAFT_HD int stored_dim() const { return (dim + 3) / 4 * 4; }
  /// Elements 4 block .. 4 block + 3 of the x of point `point`, those at or beyond `active` zero.
  GRAFT_HD void inputs4(const Draw& draw, int point, int block, int active, float* x) const {
    draw.normal4(kInputs, static_cast<std::uint32_t>(point * (stored_dim() / 4) + block), x);
    for (int c = 0; c < 4; ++c) {
      if (4 * block + c >= active) x[c] = 0.F;
    }
  }
  /// Element `unit` of s.
  [[nodiscard]] GRAFT_HD float hidden_value(const float* parameters, const float* x, int unit) const {
    const float* row = parameters + unit * dim;
    float sum = 0.F;
    for (int j = 0; j < dim; ++j) sum += row[j] * x[j];
    return sum > 0.F ? sum : 0.F;
  }
  [[nodiscard]] GRAFT_HD float label(const float* parameters, const float* s) const {
    const float* v = parameters + hidden * dim;
    float sum = 0.F;
    for (int k = 0; k < hidden; ++k) sum += v[k] * s[k];
    return sum;
  }

  [[nodiscard]] GRAFT_HD int width() const { return dim + hidden + 4; }  // of a token
  [[nodiscard]] GRAFT_HD int hidden_column() const { return dim + 1; }   // the first of s in a token
  /// Column `c` of token `kind` (0: x, 1: s, 2: y) of a point.
  [[nodiscard]] GRAFT_HD float column(int kind, int c, const float* x, const float* s, float y) const {
    if (kind == 0) return c < dim ? x[c] : (c == dim ? 1.F : 0.F);
    const int k = c - hidden_column();
    if (kind == 1) return k >= 0 && k < hidden ? s[k] : (k == hidden ? 1.F : 0.F);
    return k == hidden + 1 ? y : (k == hidden + 2 ? 1.F : 0.F);
  }
};

struct SampleChains {
  ChainOfThought law;
  Ramp dims;  // inputs at or beyond dims.at(step) are zero
  Selection selection;
  const StepState* state;  // device memory
  std::int64_t points;
  View tokens;   // [B, 3 points, stored width] float32, bfloat16 or float64
  View targets;  // [B, points, hidden + 1] float32 or float64: s, then y
};

/// Sequences in which the model reads its own step at one point each, for points first .. first + count - 1.
struct FeedBack {
  ChainOfThought law;
  std::int64_t first;
  std::int64_t count;
  ConstView tokens;   // [B, T, stored width]: the true prompts
  ConstView outputs;  // [B, T, stored columns] same dtype: what the model said to them
  View fed;  // [B * count, T', stored width] same dtype: row b * count + c has tokens 0 .. T'-1 of prompt b, with
             // s at point first + c as predicted at its x-token
};

/// The labels predicted from them.
struct CollectLabels {
  ChainOfThought law;
  std::int64_t first;
  std::int64_t count;
  ConstView outputs;  // [B * count, T', stored columns] for the sequences of FeedBack
  View predictions;   // [B, N, 1] stream dtype: points first .. first + count - 1 are written
};

inline constinit Kernel<SampleChains> sample_chains{"sample_chains"};
inline constinit Kernel<FeedBack> feed_back{"feed_back"};
inline constinit Kernel<CollectLabels> collect_labels{"collect_labels"};

}  // namespace graft
