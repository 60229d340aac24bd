#include "ops/cross_entropy.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor cross_entropy(const Context& ctx, const Tensor& logits, const Tensor& labels, std::int64_t columns) {
  require(logits.shape().rank() >= 1, "cross_entropy: logits are {}, expected [..., columns]", logits.shape().str());
  const std::int64_t rows = logits.shape().rows();
  const std::int64_t stored = logits.shape().columns();
  require(columns >= 0 && columns <= stored, "cross_entropy: {} valid columns of {}, expected at most as many", columns,
          stored);
  const std::int64_t valid = columns == 0 ? stored : columns;
  require(labels.dtype() == DType::I32, "cross_entropy: labels are {}, expected int32", name_of(labels.dtype()));
  require(labels.elements() == rows, "cross_entropy: labels are {}, expected {}: one for every row of logits {}",
          labels.shape().str(), rows, logits.shape().str());
  require(logits.dtype() == ctx.compute_dtype() || logits.dtype() == ctx.stream_dtype(),
          "cross_entropy: logits are {}, expected {} or {} in {}", name_of(logits.dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));

  Tensor loss = ctx.empty(Shape{}, ctx.stream_dtype(), "cross_entropy");
  const Tensor weight = ctx.empty(Shape{}, ctx.stream_dtype(), "cross_entropy weight");
  const Tensor log_sum = ctx.empty({rows}, ctx.stream_dtype(), "cross_entropy log sums");
  {
    const Tensor row_loss = ctx.empty({rows}, ctx.stream_dtype(), "cross_entropy of rows");
    cross_entropy_forward(ctx, {logits.view(), labels.view(), log_sum.mutable_view(), row_loss.mutable_view(),
                                loss.mutable_view(), weight.mutable_view(), valid});
  }
  if (ctx.tape == nullptr) return loss;
  ctx.tape->record("cross_entropy", {logits}, loss,
                   [logits, labels, log_sum, weight, valid](const Context& c, Grads& grads, const GradRef& dloss) {
                     cross_entropy_backward(c, {grads.of(dloss), logits.view(), labels.view(), log_sum.view(),
                                                weight.view(), grads.into(logits), valid});
                   });
  return loss;
}

}  // namespace graft
