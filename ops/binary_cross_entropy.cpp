#include "ops/binary_cross_entropy.h"

#include "engine/tape.h"

namespace graft {

Tensor binary_cross_entropy_with_logits(const Context& ctx, const Tensor& predictions, const Tensor& targets,
                                        const Tensor& mask, const SquaredErrorOptions& positions, BinaryTargets kind) {
  const SquaredErrorLayout layout =
      squared_error_layout(ctx, "binary_cross_entropy", predictions, targets, mask, positions);
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
