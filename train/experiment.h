#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "engine/parameter_store.h"
#include "engine/step_arena.h"
#include "models/model_config.h"
#include "models/sequence_model.h"
#include "ops/schedule.h"
#include "tasks/task.h"
#include "train/config.h"
#include "train/step.h"

namespace graft {

/// What a configuration describes, before it is on any device: task, model, optimiser, schedule.
struct Experiment {
  explicit Experiment(RunConfig run_config);

  RunConfig config;
  std::unique_ptr<Task> task;
  ModelConfig model_options;
  ParameterStore params;
  std::unique_ptr<SequenceModel> model;
  OptimizerConfig optimizer;
  Schedule schedule;
};

/// What a training step of the experiment touches, for a single rank; `metrics` gets its numbers. Both must outlive it.
[[nodiscard]] StepParts step_parts(Experiment& experiment, MetricsRing& metrics);

/// Bytes on the device.
struct MemoryReport {
  std::size_t parameters = 0;  // master weights and, in bf16, their copy
  std::size_t gradients = 0;
  std::size_t optimizer = 0;    // moments
  std::size_t activations = 0;  // the planned memory of the longest training step
  [[nodiscard]] std::size_t total() const { return parameters + gradients + optimizer + activations; }
  std::vector<StepArena::Usage> largest;  // what takes most of a step at its peak
};

/// Plans a training step at full length without a device: nothing is allocated, nothing runs.
[[nodiscard]] MemoryReport plan_memory_on_paper(const RunConfig& config);

/// For the error of a run that does not fit: what takes most of a step, and changes with which it would fit into `room`
/// bytes besides its parameters, each planned. `room` 0: not even the parameters fit. Where `jobs` runs share the
/// device, fewer of them is advice, too.
[[nodiscard]] std::string out_of_memory_advice(const RunConfig& config, const MemoryReport& memory, std::size_t room,
                                               int jobs = 1);

}  // namespace graft
