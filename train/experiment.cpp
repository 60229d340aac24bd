#include "train/experiment.h"

#include <utility>

#include "engine/cpu_runtime.h"
#include "engine/step_graph.h"

namespace graft {
namespace {

Schedule schedule_of(const RunConfig& config) {
  Schedule schedule;
  schedule.base = config.optimizer.lr;
  schedule.warmup = config.schedule.warmup;
  schedule.total = config.schedule.total;
  schedule.final_fraction = config.schedule.final;
  schedule.interval = config.schedule.every;
  schedule.kind = config.schedule.name == "cosine"   ? ScheduleKind::Cosine
                  : config.schedule.name == "linear" ? ScheduleKind::Linear
                                                     : ScheduleKind::Constant;
  return schedule;
}

}  // namespace

Experiment::Experiment(RunConfig run_config)
    : config(std::move(run_config)),
      task(make_task(config.settings)),
      model_options(model_config(config.settings)),
      optimizer{config.optimizer.beta1, config.optimizer.beta2, config.optimizer.eps,
                config.optimizer.name == "adamw" ? config.optimizer.weight_decay : 0.0, config.optimizer.clip},
      schedule(schedule_of(config)) {
  const TaskShape shape = task->shape();
  model = std::make_unique<SequenceModel>(
      params, model_options,
      ModelShape{shape.input_width, shape.output_width, shape.vocabulary, shape.max_tokens, shape.read_in_groups});
}

MemoryReport plan_memory_on_paper(const RunConfig& config) {
  Experiment experiment(config);
  const std::unique_ptr<Runtime> runtime = make_cpu_runtime({1});
  const std::unique_ptr<Stream> stream = runtime->make_stream();
  stream->set_planning(true);
  const auto paper = std::make_shared<PaperMemory>();
  Context ctx;
  ctx.stream = stream.get();
  ctx.run_memory = paper;
  ctx.precision = config.train.precision;
  ctx.training = true;
  const Tensor state = ctx.empty_run({static_cast<std::int64_t>(sizeof(StepState))}, DType::U8, "step state");
  ctx.state = state.mutable_view().as<StepState>();
  experiment.params.allocate(ctx);
  MetricsRing metrics(ctx, *runtime, 1);

  StepParts parts{experiment.task.get(),
                  experiment.model.get(),
                  &experiment.params,
                  &metrics,
                  experiment.optimizer,
                  experiment.schedule,
                  {RandomDomain::Train, config.train.batch, 0, false}};
  const std::int64_t points = experiment.task->final_points();
  StepGraph graph(ctx, runtime->reserve_range(), "training step",
                  [parts, points](const Context& step) { train_step(step, parts, points); });
  graph.plan_only();

  const ParameterStore& params = experiment.params;
  MemoryReport report;
  report.parameters = params.weights().bytes() + (params.compute_copy() ? params.compute_copy().bytes() : 0);
  report.gradients = params.gradients().bytes();
  report.optimizer = params.first_moments().bytes() + params.second_moments().bytes();
  report.activations = graph.arena().planned_bytes();
  report.largest = graph.arena().largest(5);
  return report;
}

}  // namespace graft
