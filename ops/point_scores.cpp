#include "ops/point_scores.h"

#include "engine/require.h"

namespace graft {

Tensor point_scores(const Context& ctx, ScoreKind kind, const Tensor& predictions, const Tensor& targets,
                    const Tensor& mask, const SquaredErrorOptions& options) {
  const SquaredErrorLayout layout = squared_error_layout(ctx, "point_scores", predictions, targets, mask, options);
  require(kind == ScoreKind::SquaredError || kind == ScoreKind::MeanSquaredError || layout.options.columns == 1,
          "point_scores: {} columns, expected 1 for signs and equality", layout.options.columns);
  Tensor scores = ctx.empty({layout.batch, layout.points}, ctx.stream_dtype(), "point scores");
  point_scores_kernel(
      ctx, {predictions.view(), targets.view(), mask ? mask.view() : ConstView{}, scores.mutable_view(), layout, kind});
  return scores;
}

}  // namespace graft
