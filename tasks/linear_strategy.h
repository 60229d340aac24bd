#pragma once
// Prompts of linear regression that differ from those of training: the same code draws them on both backends. Free of
// fmt.

#include <cmath>
#include <cstdint>

#include "engine/kernel.h"
#include "engine/philox.h"
#include "engine/step_state.h"
#include "engine/tensor.h"
#include "tasks/linear_regression.h"
#include "tasks/selection.h"

namespace graft {

/// How a prompt is made from w, g_0, g_1, ... ~ N(0, I), those of the standard prompt with the same number. The context
/// at position i is always x_0 .. x_{i-1}; where the query is not x_i, every position is a sequence of its own.
enum class PromptStrategy : std::uint8_t {
  Scaled,             // x_i = x_scale g_i, y_i = y_scale <w, x_i>
  Noisy,              // y_i = (<w, g_i> + N(0, 1)) sqrt(dim) / s, s the standard deviation of these sums in a group of
                      // kGroup consecutive prompts (unbiased); the query's label too
  HalfSubspace,       // x_i = g_i T with lambda_k = 1 for the first dim / 2 (at least one), 0 for the others
  Skewed,             // x_i = g_i T with lambda_k = 1 / (k + 1)
  RandomQuadrants,    // x_i = sigma |g_i| elementwise, one sigma in {-1, 1}^dim a prompt; the query is g_i
  OppositeQuadrants,  // the same x_i; the query is -x_i
  OrthogonalQuery,    // the query is g_i without its projection on the span of x_0 .. x_{i-1}, as long as g_i; i < dim
  Overlapping,        // the query is one of x_0 .. x_{i-1}, uniformly (at 0, x_0)
};

/// T = U diag(lambda) U^T sqrt(dim / sum lambda^2), so that E |x|^2 = dim; U is a random orthogonal matrix, one for a
/// seed. Sources: Garg et al. 2022, section 4 and appendix; their code for sizes and scales
/// (dtsip/in-context-learning).
struct LinearStrategy {
  // purposes: separate random streams, the first two those of LinearRegression
  enum : std::uint32_t {
    kWeights = LinearRegression::kWeights,
    kInputs = LinearRegression::kInputs,
    kSigns,
    kRotation,
    kChoices,
    kNoise
  };
  static constexpr int kGroup = 64;  // prompts whose noisy labels are brought to one variance: a batch of the study

  PromptStrategy strategy = PromptStrategy::Scaled;
  int dim = 20;
  int points = 41;
  float x_scale = 1.F;
  float y_scale = 1.F;

  [[nodiscard]] GRAFT_HD bool has_queries() const {
    return strategy == PromptStrategy::RandomQuadrants || strategy == PromptStrategy::OppositeQuadrants ||
           strategy == PromptStrategy::OrthogonalQuery || strategy == PromptStrategy::Overlapping;
  }
  /// Positions that have a score: beyond dim points nothing is orthogonal to all of them.
  [[nodiscard]] GRAFT_HD int scored_positions() const {
    return strategy == PromptStrategy::OrthogonalQuery && dim < points ? dim : points;
  }
  /// Sequences of a prompt: one for all positions, or one each.
  [[nodiscard]] GRAFT_HD int sequences() const { return has_queries() ? scored_positions() : 1; }
  /// Rows of U that T needs; 0: there is no T.
  [[nodiscard]] GRAFT_HD int rotation_rows() const {
    if (strategy == PromptStrategy::Skewed) return dim;
    return strategy == PromptStrategy::HalfSubspace ? (dim < 2 ? 1 : dim / 2) : 0;
  }
  [[nodiscard]] GRAFT_HD float eigenvalue(int k) const {
    return strategy == PromptStrategy::Skewed ? 1.F / static_cast<float>(k + 1) : 1.F;
  }
};

/// Floats that drawing one sequence takes, and what they hold afterwards.
struct StrategyRoom {
  float* weights;  // [dim]
  float* labels;   // [points]
  float* xs;       // [points, dim], the query at its position
  float* spare;    // [dim]
  float* basis;    // [dim, dim], only for OrthogonalQuery

  GRAFT_HD StrategyRoom(const LinearStrategy& law, float* room)
      : weights(room),
        labels(weights + law.dim),
        xs(labels + law.points),
        spare(xs + static_cast<std::int64_t>(law.points) * law.dim),
        basis(spare + law.dim) {}
  [[nodiscard]] GRAFT_HD static std::int64_t floats(const LinearStrategy& law) {
    const std::int64_t dim = law.dim;
    const std::int64_t basis = law.strategy == PromptStrategy::OrthogonalQuery ? law.scored_positions() * dim : 0;
    return 2 * dim + law.points + law.points * dim + basis;
  }
};

// What follows is written for the lanes of a warp, or for one thread of the CPU:
//   int first() const, int count() const   this lane's elements are first(), first() + count(), ...
//   T sum(T) const                         over lanes, in a fixed order; the same bits for all
//   void sync() const                      what lanes wrote before is seen by all after it
// Vectors are spread over lanes, so that a lane reads in a vector only what it wrote itself unless a sync is between.

/// A CPU thread draws a sequence alone.
struct OneLane {
  [[nodiscard]] static int first() { return 0; }
  [[nodiscard]] static int count() { return 1; }
  template <class T>
  [[nodiscard]] static T sum(T value) {
    return value;
  }
  static void sync() {}
};

template <class Lanes>
[[nodiscard]] GRAFT_HD float spread_dot(const Lanes& lanes, int dim, const float* a, const float* b) {
  float sum = 0.F;
  for (int j = lanes.first(); j < dim; j += lanes.count()) sum += a[j] * b[j];
  return lanes.sum(sum);
}

/// Takes the projections on the orthonormal rows of basis [rows, dim] from v. Twice, because what is left the first
/// time may be so short that rounding of v is a direction in it (Giraud, Langou & Rozloznik 2005).
template <class Lanes>
GRAFT_HD void remove_projections(const Lanes& lanes, int dim, const float* basis, int rows, float* v) {
  for (int pass = 0; pass < 2; ++pass) {
    for (int r = 0; r < rows; ++r) {
      const float* row = basis + static_cast<std::int64_t>(r) * dim;
      const float part = spread_dot(lanes, dim, row, v);
      for (int j = lanes.first(); j < dim; j += lanes.count()) v[j] -= part * row[j];
    }
  }
}

/// Gives v the length `length`; the zero vector stays.
template <class Lanes>
GRAFT_HD void set_length(const Lanes& lanes, int dim, float length, float* v) {
  const float square = spread_dot(lanes, dim, v, v);
  const float scale = square > 0.F ? length / sqrtf(square) : 0.F;
  for (int j = lanes.first(); j < dim; j += lanes.count()) v[j] *= scale;
}

/// The first rotation_rows() rows of U^T: Gaussian vectors made orthonormal one after the other, which is uniform over
/// orthogonal matrices.
template <class Lanes>
GRAFT_HD void draw_rotation(const Lanes& lanes, const LinearStrategy& law, std::uint64_t seed, float* rotation) {
  const Draw draw{seed, RandomDomain::Evaluation, 0, 0};
  for (int r = 0; r < law.rotation_rows(); ++r) {
    float* row = rotation + static_cast<std::int64_t>(r) * law.dim;
    for (int j = lanes.first(); j < law.dim; j += lanes.count()) {
      row[j] = draw.normal(LinearStrategy::kRotation, static_cast<std::uint32_t>(r * law.dim + j));
    }
    remove_projections(lanes, law.dim, rotation, r, row);
    set_length(lanes, law.dim, 1.F, row);
  }
}

/// A noisy label before it is scaled.
[[nodiscard]] GRAFT_HD inline float with_noise(const Draw& draw, int i, float label) {
  return label + draw.normal(LinearStrategy::kNoise, static_cast<std::uint32_t>(i));
}

/// sums[0] = sum y, sums[1] = sum y^2 over the noisy labels of one prompt.
template <class Lanes>
GRAFT_HD void sum_noisy_labels(const Lanes& lanes, const LinearStrategy& law, const Draw& draw, double* sums) {
  double sum = 0;
  double squares = 0;
  for (int i = lanes.first(); i < law.points; i += lanes.count()) {
    float label = 0.F;
    for (int j = 0; j < law.dim; ++j) {
      label += draw.normal(LinearStrategy::kWeights, static_cast<std::uint32_t>(j)) *
               draw.normal(LinearStrategy::kInputs, static_cast<std::uint32_t>(i * law.dim + j));
    }
    const auto y = static_cast<double>(with_noise(draw, i, label));
    sum += y;
    squares += y * y;
  }
  sum = lanes.sum(sum);
  squares = lanes.sum(squares);
  if (lanes.first() == 0) {
    sums[0] = sum;
    sums[1] = squares;
  }
}

/// sqrt(dim) / standard deviation of a group's noisy labels from the sums of its prompts, sums [kGroup, 2].
[[nodiscard]] GRAFT_HD inline float noise_factor(const LinearStrategy& law, const double* sums) {
  double sum = 0;
  double squares = 0;
  for (int p = 0; p < LinearStrategy::kGroup; ++p) {
    sum += sums[2 * p];
    squares += sums[2 * p + 1];
  }
  const double n = static_cast<double>(LinearStrategy::kGroup) * law.points;
  return static_cast<float>(sqrt(law.dim * (n - 1) / (squares - sum * sum / n)));
}

/// x <- x T, T from the rows of `rotation`.
template <class Lanes>
GRAFT_HD void apply_rotation(const Lanes& lanes, const LinearStrategy& law, const float* rotation, float* spare,
                             float* x) {
  float squares = 0.F;
  for (int j = lanes.first(); j < law.dim; j += lanes.count()) spare[j] = 0.F;
  for (int k = 0; k < law.rotation_rows(); ++k) {
    const float* row = rotation + static_cast<std::int64_t>(k) * law.dim;
    const float eigenvalue = law.eigenvalue(k);
    const float part = eigenvalue * spread_dot(lanes, law.dim, row, x);
    for (int j = lanes.first(); j < law.dim; j += lanes.count()) spare[j] += part * row[j];
    squares += eigenvalue * eigenvalue;
  }
  const float scale = sqrtf(static_cast<float>(law.dim) / squares);
  for (int j = lanes.first(); j < law.dim; j += lanes.count()) x[j] = scale * spare[j];
}

/// Puts the query of `position` into its place among room.xs. Starts and ends with lanes in step.
template <class Lanes>
GRAFT_HD void place_query(const Lanes& lanes, const LinearStrategy& law, const Draw& draw, int position,
                          const StrategyRoom& room) {
  const int dim = law.dim;
  float* query = room.xs + static_cast<std::int64_t>(position) * dim;
  switch (law.strategy) {
    case PromptStrategy::RandomQuadrants:
      for (int j = lanes.first(); j < dim; j += lanes.count()) {
        query[j] = draw.normal(LinearStrategy::kInputs, static_cast<std::uint32_t>(position * dim + j));
      }
      break;
    case PromptStrategy::OppositeQuadrants:
      for (int j = lanes.first(); j < dim; j += lanes.count()) query[j] = -query[j];
      break;
    case PromptStrategy::Overlapping:
      if (position > 0) {
        const auto i = static_cast<std::uint32_t>(position);
        const float* earlier = room.xs + static_cast<std::int64_t>(draw.below(i, LinearStrategy::kChoices, i)) * dim;
        for (int j = lanes.first(); j < dim; j += lanes.count()) query[j] = earlier[j];
      }
      break;
    default: {  // OrthogonalQuery
      for (int r = 0; r < position; ++r) {
        float* row = room.basis + static_cast<std::int64_t>(r) * dim;
        const float* x = room.xs + static_cast<std::int64_t>(r) * dim;
        for (int j = lanes.first(); j < dim; j += lanes.count()) row[j] = x[j];
        remove_projections(lanes, dim, room.basis, r, row);
        set_length(lanes, dim, 1.F, row);
      }
      const float length = sqrtf(spread_dot(lanes, dim, query, query));
      remove_projections(lanes, dim, room.basis, position, query);
      set_length(lanes, dim, length, query);
    }
  }
  lanes.sync();
}

/// Draws one sequence of a prompt into its room: weights, xs and labels.
///   position  of its query; -1: no query, all points are x_i
///   rotation  [rotation_rows, dim] where the strategy has them
///   factor    on noisy labels
template <class Lanes>
GRAFT_HD void draw_strategy(const Lanes& lanes, const LinearStrategy& law, const Draw& draw, int position,
                            const float* rotation, float factor, const StrategyRoom& room) {
  const int dim = law.dim;
  for (int j = lanes.first(); j < dim; j += lanes.count()) {
    room.weights[j] = draw.normal(LinearStrategy::kWeights, static_cast<std::uint32_t>(j));
  }
  const int elements = law.points * dim;
  for (int block = lanes.first(); 4 * block < elements; block += lanes.count()) {
    float g[4];
    draw.normal4(LinearStrategy::kInputs, static_cast<std::uint32_t>(block), g);
    for (int k = 0; k < 4 && 4 * block + k < elements; ++k) room.xs[4 * block + k] = g[k];
  }
  lanes.sync();
  switch (law.strategy) {
    case PromptStrategy::Scaled:
      for (int e = lanes.first(); e < elements; e += lanes.count()) room.xs[e] *= law.x_scale;
      break;
    case PromptStrategy::HalfSubspace:
    case PromptStrategy::Skewed:
      for (int i = 0; i < law.points; ++i) {
        apply_rotation(lanes, law, rotation, room.spare, room.xs + static_cast<std::int64_t>(i) * dim);
      }
      break;
    case PromptStrategy::RandomQuadrants:
    case PromptStrategy::OppositeQuadrants:
      for (int j = lanes.first(); j < dim; j += lanes.count()) {
        const bool negative = (draw.bits(LinearStrategy::kSigns, static_cast<std::uint32_t>(j)) >> 31U) != 0;
        for (int e = j; e < elements; e += dim) room.xs[e] = negative ? -fabsf(room.xs[e]) : fabsf(room.xs[e]);
      }
      break;
    default:
      break;
  }
  lanes.sync();
  if (position >= 0) place_query(lanes, law, draw, position, room);
  const LinearRegression plain{dim};
  for (int i = lanes.first(); i < law.points; i += lanes.count()) {
    const float label = plain.label(room.weights, room.xs + static_cast<std::int64_t>(i) * dim);
    room.labels[i] = law.strategy == PromptStrategy::Noisy ? factor * with_noise(draw, i, label) : law.y_scale * label;
  }
  lanes.sync();
}

/// What the kernels of a suite get. Sequence s of the set is position s % law.sequences() of prompt s /
/// law.sequences().
struct SampleStrategy {
  LinearStrategy law;
  Selection selection;     // of sequences
  const StepState* state;  // device memory
  View tokens;             // [B, 2 points, stored width] float32, bfloat16 or float64: x, (y, 0, ..., 0), x, ...
  View targets;            // [B, points, 1] float32 or float64
  View mask;               // [B, points] uint8, 1 at a sequence's position; null where all points have a score
  View room;               // [B, StrategyRoom::floats] float32
  View rotation;           // [rotation_rows, dim] float32, or null
  View sums;               // [groups, kGroup, 2] float64, of the groups from first_group() on, or null

  [[nodiscard]] GRAFT_HD std::int64_t first_sequence() const {
    return selection.first +
           (selection.consecutive ? static_cast<std::int64_t>(state->step) * selection.batch : std::int64_t{0});
  }
  [[nodiscard]] GRAFT_HD Draw draw(std::int64_t prompt) const {
    return {state->seed, selection.domain, selection.consecutive ? 0 : state->step, static_cast<std::uint32_t>(prompt)};
  }
  [[nodiscard]] GRAFT_HD std::int64_t first_group() const { return first_sequence() / LinearStrategy::kGroup; }
  /// Groups that `batch` prompts can be spread over, wherever they start.
  [[nodiscard]] static std::int64_t groups(std::int64_t batch) {
    return (batch + LinearStrategy::kGroup - 2) / LinearStrategy::kGroup + 1;
  }
};

/// Fills rotation: needed before sample_linear_strategy where the law has rotation rows.
inline constinit Kernel<SampleStrategy> draw_strategy_rotation{"draw_strategy_rotation"};
/// Fills sums: needed before sample_linear_strategy where labels are noisy.
inline constinit Kernel<SampleStrategy> sum_strategy_labels{"sum_strategy_labels"};
/// Fills tokens, targets and the mask.
inline constinit Kernel<SampleStrategy> sample_linear_strategy{"sample_linear_strategy"};

/// The sums of prompt `slot` of the groups, if the batch has a prompt of its group.
template <class Lanes>
GRAFT_HD void sum_slot(const Lanes& lanes, const SampleStrategy& args, std::int64_t slot) {
  const std::int64_t prompt = args.first_group() * LinearStrategy::kGroup + slot;
  const std::int64_t last = args.first_sequence() + args.selection.batch - 1;
  if (prompt / LinearStrategy::kGroup > last / LinearStrategy::kGroup) return;
  sum_noisy_labels(lanes, args.law, args.draw(prompt), args.sums.as<double>() + 2 * slot);
}

/// Draws sequence `i` of the batch into its room. `position` becomes that of its query, -1 without one.
template <class Lanes>
GRAFT_HD StrategyRoom draw_sequence(const Lanes& lanes, const SampleStrategy& args, std::int64_t i, int* position) {
  const LinearStrategy& law = args.law;
  const std::int64_t sequence = args.first_sequence() + i;
  const std::int64_t prompt = sequence / law.sequences();
  *position = law.has_queries() ? static_cast<int>(sequence % law.sequences()) : -1;
  float factor = 1.F;
  if (law.strategy == PromptStrategy::Noisy) {
    const std::int64_t group = prompt / LinearStrategy::kGroup - args.first_group();
    factor = noise_factor(law, args.sums.as<double>() + group * 2 * LinearStrategy::kGroup);
  }
  const StrategyRoom room(law, args.room.as<float>() + i * StrategyRoom::floats(law));
  draw_strategy(lanes, law, args.draw(prompt), *position,
                args.rotation.data == nullptr ? nullptr : args.rotation.as<float>(), factor, room);
  return room;
}

}  // namespace graft
