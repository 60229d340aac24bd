#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "engine/context.h"
#include "engine/parameter_store.h"
#include "engine/tensor.h"
#include "models/sequence_model.h"
#include "ops/schedule.h"
#include "tasks/task.h"
#include "train/metrics.h"

namespace graft {

/// What the optimiser needs besides the schedule.
struct OptimizerConfig {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double clip = 10;  // 0: off
};

/// Everything a training step touches; the trainer owns it.
struct StepParts {
  const Task* task = nullptr;
  const SequenceModel* model = nullptr;
  ParameterStore* params = nullptr;
  MetricsRing* metrics = nullptr;
  OptimizerConfig optimizer;
  Schedule schedule;
  Selection examples;  // what this rank draws of each step
  /// Puts something between a step and its device: tests inject faults, the search for the first value that is not
  /// finite watches every launch. Empty in an ordinary step.
  std::function<Context(const Context&)> intercept = {};
};

/// One training step at `points` in-context points: sample, forward, backward, clip, update, log, advance. The same
/// code in warm-up, in capture and with capture switched off.
void train_step(const Context& ctx, const StepParts& parts, std::int64_t points);

/// One evaluation batch of parts.task: sample, forward, and rows [step * batch, ...) of `scores` [sequences, N] in the
/// stream dtype; then step += 1.
void eval_step(const Context& ctx, const StepParts& parts, const Selection& examples, const Tensor& scores);

}  // namespace graft
