#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"
#include "ops/squared_error.h"

namespace graft {

enum class ScoreKind : std::uint8_t {
  SquaredError,      // sum over the columns of (prediction - target)^2
  SignAgreement,     // 1 if prediction * target > 0 (one column), else 0
  Equality,          // 1 if prediction == target (one column), else 0
  MeanSquaredError,  // mean over the columns of (prediction - target)^2
};

/// The score of a point that does not count.
inline constexpr double kNotScored = -1;

struct PointScores {
  ConstView predictions;  // [B, T, stored columns]
  ConstView targets;      // [B, N, target columns]
  ConstView mask;         // [B, N] uint8, or null
  View scores;            // [B, N]
  SquaredErrorLayout layout;
  ScoreKind kind = ScoreKind::SquaredError;
};

inline constinit Kernel<PointScores> point_scores_kernel{"point_scores"};

/// What an evaluation keeps of each point: how good the prediction at token stride * i + offset is as target i.
///   predictions  [B, T, stored]      any floating dtype
///   targets      [B, N, >= columns]  the stream dtype
///   mask         [B, N]              uint8, 1 = the point counts; or an empty tensor: all do
///   returns      [B, N]              the stream dtype; kNotScored where the mask is 0
/// options.sum_columns is not looked at: the kind says whether squared errors are sums or means. Not differentiable.
/// Throws ArgumentError if shapes or dtypes do not fit, if the last target lies beyond the last token, and for several
/// columns where there can be only one.
[[nodiscard]] Tensor point_scores(const Context& ctx, ScoreKind kind, const Tensor& predictions, const Tensor& targets,
                                  const Tensor& mask = {}, const SquaredErrorOptions& options = {});

/// One point: read(c) is compared column c of its prediction in the scores' type, target[c] that of its target.
template <class S, class Read>
[[nodiscard]] GRAFT_HD S point_score(ScoreKind kind, const Read& read, const S* target, std::int64_t columns) {
  if (kind == ScoreKind::SignAgreement) return read(0) * target[0] > S(0) ? S(1) : S(0);
  if (kind == ScoreKind::Equality) return read(0) == target[0] ? S(1) : S(0);
  S sum = 0;
  for (std::int64_t c = 0; c < columns; ++c) {
    const S error = read(c) - target[c];
    sum += error * error;
  }
  return kind == ScoreKind::MeanSquaredError ? sum / static_cast<S>(columns) : sum;
}

}  // namespace graft
