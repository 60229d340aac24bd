// Golden cases of optimiser, clipping and learning-rate schedule.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/parameter_store.h"
#include "engine/require.h"
#include "ops/adam.h"
#include "ops/clip.h"
#include "ops/schedule.h"
#include "tests/support/device_state.h"
#include "tests/support/golden.h"

namespace graft::test {
namespace {

using Buffer = ParameterStore::Buffer;

/// A store with one parameter for each tensor that starts with `prefix`.
void add_parameters(ParameterStore& store, const GoldenCase& golden, const std::string& prefix) {
  for (const std::string& name : golden.names(prefix))
    store.add("", name, golden.shape(prefix + name), init::constant(0));
}

void write_all(GoldenRun& run, ParameterStore& store, Buffer buffer, const std::string& prefix) {
  for (const ParameterStore::Entry& entry : store.entries()) {
    store.write(run.ctx(), entry, buffer, run.golden().values(prefix + entry.name));
  }
}

void check_all(GoldenRun& run, const ParameterStore& store, Buffer buffer, const std::string& prefix) {
  for (const ParameterStore::Entry& entry : store.entries()) {
    run.check_output(prefix + entry.name, store.read(run.ctx(), entry, buffer));
  }
}

Schedule schedule_of(const GoldenCase& golden) {
  Schedule schedule;
  schedule.base = golden.number("lr");
  if (golden.setting("total_steps").is_null()) return schedule;
  schedule.kind = ScheduleKind::Cosine;
  schedule.warmup = golden.integer("warmup_steps");
  schedule.total = golden.integer("total_steps");
  return schedule;
}

/// Steps with given gradients: clipping where the case has a norm for it, update, schedule.
void run_adam(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const std::vector<double> betas = golden.numbers("betas");
  require(betas.size() == 2, "adam: {} betas, expected 2", betas.size());
  const AdamOptions options{betas[0], betas[1], golden.number("eps"), golden.number("weight_decay")};
  const Schedule schedule = schedule_of(golden);

  ParameterStore store;
  add_parameters(store, golden, "param.");
  store.allocate(run.ctx());
  write_all(run, store, Buffer::Weights, "param.");
  const DeviceState state(run.device(), initial_state(0, schedule, options.beta1, options.beta2));
  int steps = 0;
  for (; !golden.names(fmt::format("in.step{}.", steps + 1)).empty(); ++steps) {
    const std::string step = fmt::format("step{}.", steps + 1);
    write_all(run, store, Buffer::Gradients, "in." + step + "grad.");
    if (!golden.setting("max_grad_norm").is_null()) {
      clip_by_global_norm(run.ctx(), store.gradients(), golden.number("max_grad_norm"));
    }
    const StepState before = state.read();
    if (golden.has("out." + step + "lr")) run.check_output("out." + step + "lr", {before.learning_rate});
    if (golden.has("out." + step + "grad_norm")) {
      run.check_output("out." + step + "grad_norm", {before.gradient_norm});
    }
    adam(run.ctx(), store, options);
    advance(run.ctx(), schedule, options.beta1, options.beta2);
    check_all(run, store, Buffer::Weights, "out." + step);
  }
  CHECK(steps > 0);
  check_all(run, store, Buffer::FirstMoments, "out.final.exp_avg.");
  check_all(run, store, Buffer::SecondMoments, "out.final.exp_avg_sq.");
}

/// Gradients of several sizes, in groups "above" and "below" the largest norm. Clipping leaves a factor on the device.
void run_clip(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  for (const std::string group : {"above", "below"}) {
    const std::string prefix = "in." + group + ".";
    ParameterStore store;
    add_parameters(store, golden, prefix);
    store.allocate(run.ctx());
    write_all(run, store, Buffer::Gradients, prefix);
    const DeviceState state(run.device());
    clip_by_global_norm(run.ctx(), store.gradients(), golden.number("max_norm_" + group));
    const StepState after = state.read();
    run.check_output("out." + group + ".norm", {after.gradient_norm});
    if (group == "below") CHECK(after.clip_scale == 1);
    for (const ParameterStore::Entry& entry : store.entries()) {
      std::vector<double> gradient = store.read(run.ctx(), entry, Buffer::Gradients);
      for (double& value : gradient) value *= after.clip_scale;
      run.check_output("out." + group + "." + entry.name, gradient);
    }
  }
}

/// The rates of a whole run, as the device moves on from step to step.
void run_schedule(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  require(golden.number("num_cycles") == 0.5, "schedule: num_cycles is {}, expected 0.5: one fall to zero",
          golden.number("num_cycles"));
  struct Curve {
    const char* name;
    ScheduleKind kind;
  };
  for (const Curve& curve :
       {Curve{"out.multiplier", ScheduleKind::Cosine}, Curve{"out.multiplier_linear", ScheduleKind::Linear}}) {
    Schedule schedule;
    schedule.kind = curve.kind;
    schedule.base = 1;
    schedule.warmup = golden.integer("warmup_steps");
    schedule.total = golden.integer("total_steps");
    const DeviceState state(run.device(), initial_state(0, schedule, 0.9, 0.999));
    std::vector<double> rates;
    for (std::int64_t step = 0; step < golden.shape(curve.name).elements(); ++step) {
      rates.push_back(state.read().learning_rate);
      advance(run.ctx(), schedule, 0.9, 0.999);
    }
    run.check_output(curve.name, rates);
  }
}

const RegisterGolden adam_registered{{"adam_*", run_adam}};
const RegisterGolden adamw_registered{{"adamw_*", run_adam}};
const RegisterGolden clip_registered{{"grad_clip", run_clip}};
const RegisterGolden schedule_registered{{"cosine_warmup_schedule", run_schedule}};

}  // namespace
}  // namespace graft::test
