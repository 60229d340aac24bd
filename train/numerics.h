#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/context.h"
#include "engine/parameter_store.h"
#include "engine/runtime.h"
#include "ops/value_summary.h"
#include "train/step.h"

namespace graft {

/// What StepState::first_bad means: "gradient of blocks.0.mlp.up.weight [37]", "loss" or "gradient norm"; empty for
/// kNothingBad. The index is into the stored parameter, padding included.
[[nodiscard]] std::string first_bad_name(const ParameterStore& params, std::int64_t first_bad);

/// What to change in a run that diverged with these, and what it is now: "lower optimizer.lr (now 0.001) ...".
[[nodiscard]] std::string divergence_advice(const OptimizerConfig& optimizer, const Schedule& schedule);

/// One buffer of one parameter that holds values that are not finite.
struct BadParameter {
  std::string name;    // of the parameter
  const char* buffer;  // "weights", "first moments" or "second moments"
  ValueSummary values;
};
/// Weights and moments that are not finite; empty in a healthy run. Reads each flat buffer once and waits. Must not be
/// called while capturing.
[[nodiscard]] std::vector<BadParameter> bad_parameters(const Context& ctx, const ParameterStore& params);

/// Where values that are not finite come from.
struct NumericsReport {
  nlohmann::ordered_json json;  // numerics.json; numbers that JSON cannot write are strings
  std::string origin;           // for people, one line
};

/// Runs the step at which the state stands still once more, launch by launch, and looks at every tensor that a launch
/// was given right after it: the first that is not finite is what the report calls the origin. Where all are finite and
/// only the gradients' squares are too large, it names the largest gradient and the launch that wrote it. Parameters,
/// moments and state stay as they are; gradients become those of this step. Throws ArgumentError unless
/// kMostSkippedInRow steps were skipped, since another step would change what is to be examined.
[[nodiscard]] NumericsReport examine_step(const Context& ctx, const std::shared_ptr<AddressRange>& range,
                                          const StepParts& parts);

/// The report on weights or moments that are not finite before the step that `ctx.state` tells.
[[nodiscard]] NumericsReport report_parameters(const Context& ctx, const StepParts& parts,
                                               const std::vector<BadParameter>& bad);

}  // namespace graft
