#include "train/experiment.h"

#include <fmt/format.h>

#include <cstdint>
#include <utility>

#include "engine/cpu_runtime.h"
#include "engine/step_graph.h"
#include "train/progress.h"

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

std::string text_of(std::size_t bytes) { return bytes_text(static_cast<double>(bytes)); }

}  // namespace

Experiment::Experiment(RunConfig run_config)
    : config(std::move(run_config)),
      task(make_task(config.settings)),
      model_options(model_config(config.settings)),
      optimizer{config.optimizer.beta1, config.optimizer.beta2, config.optimizer.eps,
                config.optimizer.name == "adamw" ? config.optimizer.weight_decay : 0.0, config.optimizer.clip},
      schedule(schedule_of(config)) {
  model_options.recompute = config.train.recompute;
  const TaskShape shape = task->shape();
  model = std::make_unique<SequenceModel>(
      params, model_options,
      ModelShape{shape.input_width, shape.output_width, shape.vocabulary, shape.max_tokens, shape.read_in_groups});
}

StepParts step_parts(Experiment& experiment, MetricsRing& metrics) {
  return {experiment.task.get(),
          experiment.model.get(),
          &experiment.params,
          &metrics,
          experiment.optimizer,
          experiment.schedule,
          {RandomDomain::Train, experiment.config.train.batch, 0, false}};
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

  const StepParts parts = step_parts(experiment, metrics);
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

std::string out_of_memory_advice(const RunConfig& config, const MemoryReport& memory, std::size_t room, int jobs) {
  const std::size_t lasting = memory.total() - memory.activations;
  const std::string fewer =
      jobs > 1 ? fmt::format("; {} runs share the memory: a smaller --jobs leaves each of them more", jobs)
               : std::string();
  if (room == 0) {
    return fmt::format("parameters, gradients and optimizer take {}, a step {} more; use a smaller model{}",
                       text_of(lasting), text_of(memory.activations), fewer);
  }
  std::vector<std::string> tensors;
  for (const StepArena::Usage& usage : memory.largest) {
    tensors.push_back(fmt::format("{}{} ({})", usage.count > 1 ? fmt::format("{} x ", usage.count) : std::string(),
                                  usage.name, text_of(usage.bytes)));
  }

  // Some is left to what is not planned: captured graphs, metrics, buffers of evaluations.
  const std::size_t limit = room - room / 32;
  const auto needs = [&](const RunConfig& changed) { return plan_memory_on_paper(changed).total() - lasting; };
  std::vector<std::string> changes;
  const auto offer = [&](const std::string& change, const RunConfig& changed) {
    const std::size_t bytes = needs(changed);
    if (bytes <= limit) changes.push_back(fmt::format("{} ({})", change, text_of(bytes)));
    return bytes <= limit;
  };
  const auto offer_batch = [&](const std::string& others, RunConfig changed) {
    const auto fits = [&](std::int64_t batch) {
      changed.train.batch = batch;
      return needs(changed) <= limit;
    };
    std::int64_t most = 0;
    for (std::int64_t beyond = config.train.batch; most + 1 < beyond;) {
      const std::int64_t middle = most + (beyond - most) / 2;
      (fits(middle) ? most : beyond) = middle;
    }
    if (most == 0) return;
    changed.train.batch = most;
    offer(fmt::format("{}train.batch = {}", others, most), changed);
  };
  const bool may_recompute = !config.train.recompute;
  const bool may_narrow = config.train.precision == Precision::Fp32 || config.train.precision == Precision::Tf32;
  RunConfig recomputed = config;
  recomputed.train.recompute = true;
  const auto narrowed = [](RunConfig changed) {
    changed.train.precision = Precision::Bf16;
    return changed;
  };
  const std::string recompute = "train.recompute = true", bf16 = "train.precision = \"bf16\"";
  offer_batch("", config);
  const bool recompute_fits = may_recompute && offer(recompute, recomputed);
  if (may_recompute && !recompute_fits) offer_batch(recompute + " with ", recomputed);
  const bool bf16_fits = may_narrow && offer(bf16, narrowed(config));
  if (may_recompute && may_narrow && !recompute_fits && !bf16_fits) {
    offer(fmt::format("{} with {}", recompute, bf16), narrowed(recomputed));
  }
  return fmt::format("most of it is {}; {}{}", fmt::join(tensors, ", "),
                     changes.empty() ? "no batch fits: use a smaller model"
                                     : fmt::format("what would fit: {}", fmt::join(changes, ", or ")),
                     fewer);
}

}  // namespace graft
