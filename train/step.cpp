#include "train/step.h"

#include "engine/tape.h"
#include "ops/adam.h"
#include "ops/clip.h"

namespace graft {
namespace {

Tensor outputs_of(const Context& ctx, const SequenceModel& model, const Batch& batch) {
  return batch.ids ? model.logits(ctx, batch.ids, batch.positions) : model(ctx, batch.tokens);
}

}  // namespace

void train_step(const Context& outer, const StepParts& parts, std::int64_t points) {
  const Context ctx = parts.intercept ? parts.intercept(outer) : outer;
  Batch batch = parts.task->sample(ctx, parts.examples, points);  // reads step and seed from device memory
  batch.output_columns = parts.model->output_columns();
  parts.params->begin_gradients();
  Tape tape;
  const Context recording = ctx.with_tape(tape);
  const Tensor loss = parts.task->loss(recording, outputs_of(recording, *parts.model, batch), batch);
  static_cast<void>(tape.backward(ctx, loss, parts.params));
  parts.params->finish_gradients(ctx);
  clip_by_global_norm(ctx, parts.params->gradients(), parts.optimizer.clip, loss);  // leaves the scale on the device
  adam(ctx, *parts.params,
       {parts.optimizer.beta1, parts.optimizer.beta2, parts.optimizer.eps, parts.optimizer.weight_decay});
  parts.metrics->write(ctx, loss);
  advance(ctx, parts.schedule, parts.optimizer.beta1, parts.optimizer.beta2);  // step += 1, next learning rate
}

void eval_step(const Context& ctx, const StepParts& parts, const Selection& examples, const Tensor& scores) {
  Batch batch = parts.task->sample(ctx, examples, parts.task->final_points());
  batch.output_columns = parts.model->output_columns();
  const Tensor batch_scores = parts.task->evaluate(
      ctx, [&parts](const Context& c, const Batch& b) { return outputs_of(c, *parts.model, b); }, batch);
  place_rows(ctx, {batch_scores.view(), scores.mutable_view(), ctx.state});
  advance(ctx, Schedule{}, 0, 0);
}

}  // namespace graft
