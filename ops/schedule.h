#pragma once

#include <cmath>
#include <cstdint>

#include "engine/context.h"
#include "engine/dtype.h"
#include "engine/kernel.h"
#include "engine/step_state.h"

namespace graft {

enum class ScheduleKind : std::uint8_t { Constant, Linear, Cosine };

/// The learning rate as a function of the steps already done:
///   base * step / warmup                                           while step < warmup
///   base * (final_fraction + (1 - final_fraction) * fall(progress))  afterwards,
///   progress = (step - warmup) / (total - warmup), at most 1,
///   fall = 1 (constant), 1 - progress (linear) or (1 + cos(pi * progress)) / 2 (cosine).
/// With a warm-up the very first step has rate 0. Constant ignores total and final_fraction.
/// Same as get_cosine_schedule_with_warmup and get_linear_schedule_with_warmup of Hugging Face transformers
/// (optimization.py) up to `total`; there the cosine would rise again beyond it. Cosine without a warm-up is
/// Loshchilov & Hutter 2017, equation 5.
struct Schedule {
  ScheduleKind kind = ScheduleKind::Constant;
  double base = 0;
  std::int64_t warmup = 0;    // steps
  std::int64_t total = 0;     // steps, warm-up included
  double final_fraction = 0;  // of base, from step `total` on
  std::int64_t interval = 1;  // the rate changes every so many steps: the steps of an epoch, or 1

  [[nodiscard]] GRAFT_HD double evaluate(std::uint64_t step) const {
    auto done = static_cast<std::int64_t>(step);
    if (interval > 1) done -= done % interval;
    if (done < warmup) return base * (static_cast<double>(done) / static_cast<double>(warmup));
    if (kind == ScheduleKind::Constant) return base;
    const std::int64_t span = total > warmup ? total - warmup : 1;
    double progress = static_cast<double>(done - warmup) / static_cast<double>(span);
    if (progress > 1) progress = 1;
    const double fall =
        kind == ScheduleKind::Linear ? 1 - progress : 0.5 * (1 + cos(3.14159265358979323846 * progress));
    return base * (final_fraction + (1 - final_fraction) * fall);
  }
};

/// Sets what the update number `state.updates + 1`, at `state.step`, reads: learning rate and bias corrections.
GRAFT_HD inline void prepare_update(StepState& state, const Schedule& schedule, double beta1, double beta2) {
  const auto update = static_cast<double>(state.updates + 1);
  state.learning_rate = schedule.evaluate(state.step);
  state.bias_correction1 = 1 - pow(beta1, update);
  state.bias_correction2 = 1 - pow(beta2, update);
}

/// The state before a run's first step, or of one that goes on after `step` steps and `updates` updates.
[[nodiscard]] inline StepState initial_state(std::uint64_t seed, const Schedule& schedule, double beta1, double beta2,
                                             std::uint64_t step = 0, std::uint64_t updates = 0) {
  StepState state;
  state.seed = seed;
  state.step = step;
  state.updates = updates;
  prepare_update(state, schedule, beta1, beta2);
  return state;
}

/// Ends a step: the formula both backends share.
GRAFT_HD inline void end_step(StepState& state, const Schedule& schedule, double beta1, double beta2) {
  if (state.skipped_in_row >= kMostSkippedInRow) return;  // stands still: this step comes again, bit for bit
  state.step += 1;
  if (state.skip == 0) state.updates += 1;
  state.skip = 0;
  prepare_update(state, schedule, beta1, beta2);
}

struct AdvanceArgs {
  StepState* state;
  Schedule schedule;
  double beta1, beta2;
};

inline constinit Kernel<AdvanceArgs> advance_state{"advance"};

/// Ends a step, on the device: step += 1; updates += 1 unless the step was skipped; learning rate and bias
/// corrections of the next update; skip = 0. A skipped step counts for data and learning rate, which follow `step`, and
/// not for the bias corrections, which follow `updates`: they correct the moments, and those did not change. Does
/// nothing after kMostSkippedInRow skipped steps in a row. Throws ArgumentError without a step state.
void advance(const Context& ctx, const Schedule& schedule, double beta1, double beta2);

}  // namespace graft
