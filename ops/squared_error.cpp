#include "ops/squared_error.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

SquaredErrorLayout squared_error_layout(const Context& ctx, const char* op, const Tensor& predictions,
                                        const Tensor& targets, const Tensor& mask, const SquaredErrorOptions& options) {
  require(predictions.shape().rank() == 3, "{}: predictions are {}, expected [B, T, columns]", op,
          predictions.shape().str());
  const std::int64_t batch = predictions.shape()[0];
  const std::int64_t tokens = predictions.shape()[1];
  const std::int64_t stored = predictions.shape()[2];
  require(targets.shape().rank() == 3 && targets.shape()[0] == batch, "{}: targets are {}, expected [{}, N, columns]",
          op, targets.shape().str(), batch);
  const std::int64_t points = targets.shape()[1];
  require(options.first_column >= 0 && options.target_column >= 0,
          "{}: first column {} of predictions and {} of targets, expected at least 0", op, options.first_column,
          options.target_column);
  const std::int64_t columns = options.columns == 0 ? targets.shape()[2] - options.target_column : options.columns;
  const bool fit =
      columns >= 1 && options.first_column + columns <= stored && options.target_column + columns <= targets.shape()[2];
  require(fit || options.first_column > 0 || options.target_column > 0,
          "{}: {} columns, but predictions are {} and targets {}", op, columns, predictions.shape().str(),
          targets.shape().str());
  require(fit, "{}: {} columns, from {} on of predictions {} and from {} on of targets {}: expected columns they have",
          op, columns, options.first_column, predictions.shape().str(), options.target_column, targets.shape().str());
  require(options.position_stride >= 1 && options.position_offset >= 0,
          "{}: position stride {} and offset {}, expected at least 1 and 0", op, options.position_stride,
          options.position_offset);
  const std::int64_t last = options.position_stride * (points - 1) + options.position_offset;
  require(last < tokens, "{}: target {} is predicted at token {}, but there are {} tokens", op, points - 1, last,
          tokens);
  require(predictions.elements() < (std::int64_t{1} << 31), "{}: predictions are {}, expected fewer than 2^31 elements",
          op, predictions.shape().str());
  require(predictions.dtype() == ctx.compute_dtype() || predictions.dtype() == ctx.stream_dtype(),
          "{}: predictions are {}, expected {} or {} in {}", op, name_of(predictions.dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
  require(targets.dtype() == ctx.stream_dtype(), "{}: targets are {}, expected {} in {}", op, name_of(targets.dtype()),
          name_of(ctx.stream_dtype()), name_of(ctx.precision));
  if (mask) {
    require(mask.shape() == Shape{batch, points} && mask.dtype() == DType::U8,
            "{}: the mask is {} {}, expected uint8 [{}, {}]", op, name_of(mask.dtype()), mask.shape().str(), batch,
            points);
  }

  SquaredErrorLayout layout{batch, tokens, stored, points, targets.shape()[2], options};
  layout.options.columns = columns;
  return layout;
}

Tensor squared_error(const Context& ctx, const Tensor& predictions, const Tensor& targets, const Tensor& mask,
                     const SquaredErrorOptions& options) {
  const SquaredErrorLayout layout = squared_error_layout(ctx, "squared_error", predictions, targets, mask, options);
  const ConstView mask_view = mask ? mask.view() : ConstView{};
  Tensor loss = ctx.empty(Shape{}, ctx.stream_dtype(), "squared_error");
  Tensor weight;
  if (ctx.tape != nullptr) weight = ctx.empty(Shape{}, ctx.stream_dtype(), "squared_error weight");
  {
    const Tensor partial =
        ctx.empty({squared_error_blocks(layout.elements()), 2}, DType::F64, "squared_error partial sums");
    squared_error_forward(ctx, {predictions.view(), targets.view(), mask_view, partial.mutable_view(),
                                loss.mutable_view(), weight ? weight.mutable_view() : View{}, layout});
  }
  if (ctx.tape == nullptr) return loss;
  ctx.tape->record("squared_error", {predictions}, loss,
                   [predictions, targets, mask, weight, layout](const Context& c, Grads& grads, const GradRef& dloss) {
                     squared_error_backward(
                         c, {grads.of(dloss), predictions.view(), targets.view(), mask ? mask.view() : ConstView{},
                             weight.view(), grads.into(predictions), layout});
                   });
  return loss;
}

}  // namespace graft
