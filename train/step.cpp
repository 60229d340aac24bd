#include "train/step.h"

#include "engine/tape.h"
#include "ops/adam.h"
#include "ops/clip.h"

namespace graft {

void train_step(const Context& ctx, const StepParts& parts, std::int64_t points) {
  const Batch batch = parts.task->sample(ctx, parts.examples, points);  // reads step and seed from device memory
  parts.params->begin_gradients();
  Tape tape;
  const Context recording = ctx.with_tape(tape);
  const Tensor loss = parts.task->loss(recording, (*parts.model)(recording, batch.tokens), batch);
  static_cast<void>(tape.backward(ctx, loss, parts.params));
  parts.params->finish_gradients(ctx);
  clip_by_global_norm(ctx, parts.params->gradients(), parts.optimizer.clip);  // leaves the scale on the device
  adam(ctx, *parts.params,
       {parts.optimizer.beta1, parts.optimizer.beta2, parts.optimizer.eps, parts.optimizer.weight_decay});
  parts.metrics->write(ctx, loss);
  advance(ctx, parts.schedule, parts.optimizer.beta1, parts.optimizer.beta2);  // step += 1, next learning rate
}

void eval_step(const Context& ctx, const StepParts& parts, const Selection& examples, const EvalBuffers& buffers) {
  const std::int64_t points = parts.task->final_points();
  const Batch batch = parts.task->sample(ctx, examples, points);
  const Tensor outputs = (*parts.model)(ctx, batch.tokens);
  const Tensor predictions = parts.task->predictions(ctx, outputs, points);
  place_rows(ctx, {predictions.view(), buffers.predictions.mutable_view(), ctx.state});
  place_rows(ctx, {batch.targets.view(), buffers.targets.mutable_view(), ctx.state});
  advance(ctx, Schedule{}, 0, 0);
}

}  // namespace graft
