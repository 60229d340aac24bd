#include "ops/binary_cross_entropy.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor binary_cross_entropy_with_logits(const Context& ctx, const Tensor& predictions, const Tensor& targets,
                                        const Tensor& mask, const SquaredErrorOptions& positions, BinaryTargets kind) {
  require(predictions.shape().rank() == 3, "binary_cross_entropy: predictions are {}, expected [B, T, columns]",
          predictions.shape().str());
  const std::int64_t batch = predictions.shape()[0];
  const std::int64_t tokens = predictions.shape()[1];
  const std::int64_t stored = predictions.shape()[2];
  require(targets.shape().rank() == 3 && targets.shape()[0] == batch,
          "binary_cross_entropy: targets are {}, expected [{}, N, columns]", targets.shape().str(), batch);
  const std::int64_t points = targets.shape()[1];
  const std::int64_t columns = positions.columns == 0 ? targets.shape()[2] : positions.columns;
  require(columns >= 1 && columns <= stored && columns <= targets.shape()[2],
          "binary_cross_entropy: {} columns, but predictions are {} and targets {}", columns, predictions.shape().str(),
          targets.shape().str());
  require(positions.position_stride >= 1 && positions.position_offset >= 0,
          "binary_cross_entropy: position stride {} and offset {}, expected at least 1 and 0",
          positions.position_stride, positions.position_offset);
  const std::int64_t last = positions.position_stride * (points - 1) + positions.position_offset;
  require(last < tokens, "binary_cross_entropy: target {} is predicted at token {}, but there are {} tokens",
          points - 1, last, tokens);
  require(predictions.elements() < (std::int64_t{1} << 31),
          "binary_cross_entropy: predictions are {}, expected fewer than 2^31 elements", predictions.shape().str());
  require(predictions.dtype() == ctx.compute_dtype() || predictions.dtype() == ctx.stream_dtype(),
          "binary_cross_entropy: predictions are {}, expected {} or {} in {}", name_of(predictions.dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
  require(targets.dtype() == ctx.stream_dtype(), "binary_cross_entropy: targets are {}, expected {} in {}",
          name_of(targets.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
  if (mask) {
    require(mask.shape() == Shape{batch, points} && mask.dtype() == DType::U8,
            "binary_cross_entropy: the mask is {} {}, expected uint8 [{}, {}]", name_of(mask.dtype()),
            mask.shape().str(), batch, points);
  }

  SquaredErrorLayout layout{batch, tokens, stored, points, targets.shape()[2], positions};
  layout.options.columns = columns;
  const ConstView mask_view = mask ? mask.view() : ConstView{};
  Tensor loss = ctx.empty(Shape{}, ctx.stream_dtype(), "binary_cross_entropy");
  Tensor weight;
  if (ctx.tape != nullptr) weight = ctx.empty(Shape{}, ctx.stream_dtype(), "binary_cross_entropy weight");
  {
    const Tensor partial =
        ctx.empty({squared_error_blocks(layout.elements()), 2}, DType::F64, "binary_cross_entropy partial sums");
    binary_cross_entropy_forward(ctx, {predictions.view(), targets.view(), mask_view, partial.mutable_view(),
                                       loss.mutable_view(), weight ? weight.mutable_view() : View{}, layout, kind});
  }
  if (ctx.tape == nullptr) return loss;
  ctx.tape->record(
      "binary_cross_entropy", {predictions}, loss,
      [predictions, targets, mask, weight, layout, kind](const Context& c, Grads& grads, const GradRef& dloss) {
        binary_cross_entropy_backward(
            c, {grads.of(dloss), predictions.view(), targets.view(), mask ? mask.view() : ConstView{}, weight.view(),
                grads.into(predictions), layout, kind});
      });
  return loss;
}

}  // namespace graft
