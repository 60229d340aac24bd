#include "train/numerics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "engine/require.h"
#include "engine/step_graph.h"
#include "engine/stream.h"
#include "ops/clip.h"
#include "train/json_lines.h"
#include "train/step_watcher.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMostEvents = 16;  // launches listed after the first, to show how it spread

StepState read_state(const Context& ctx) {
  StepState state;
  ctx.stream->download(&state, ctx.state, sizeof(state), "step state");
  return state;
}

Json json_of(const ValueSummary& values, std::int64_t elements) {
  Json result;
  result["elements"] = elements;
  result["nan"] = values.nan;
  result["infinite"] = values.infinite;
  if (!values.finite()) result["first_index"] = values.first_bad;
  result["min"] = values.min;
  result["max"] = values.max;
  return result;
}

Json json_of(const StepWatcher::Watched& tensor, const ValueSummary& values) {
  Json result;
  result["tensor"] = tensor.name;
  if (!tensor.parameter.empty()) result["parameter"] = tensor.parameter;
  result["shape"] = tensor.view.shape.str();
  result["dtype"] = name_of(tensor.view.dtype);
  result["values"] = json_of(values, tensor.view.shape.elements());
  return result;
}

std::string text_of(const ValueSummary& values, std::int64_t elements) {
  return fmt::format("{} NaN and {} infinite of {} values", values.nan, values.infinite, elements);
}

Json header(const Context& ctx, const StepParts& parts, const StepState& state) {
  Json json;
  json["step"] = state.step + 1;
  json["updates"] = state.updates;
  json["skipped"] = state.skipped;
  json["skipped_in_row"] = state.skipped_in_row;
  json["gradient_norm"] = state.gradient_norm;
  json["learning_rate"] = state.learning_rate;
  json["clip"] = parts.optimizer.clip;
  json["precision"] = name_of(ctx.precision);
  return json;
}

ConstView part_of(const Tensor& flat, const ParameterStore::Entry& entry) {
  const std::size_t offset = static_cast<std::size_t>(entry.offset) * size_of(flat.dtype());
  return {flat.view().as<std::byte>() + offset, flat.dtype(), entry.stored};
}

/// Parameters any of whose buffers is not finite, with weights and gradients.
Json parameters_json(const Context& ctx, const ParameterStore& params) {
  Json result = Json::array();
  for (const ParameterStore::Entry& entry : params.entries()) {
    const std::int64_t elements = entry.stored.elements();
    const ValueSummary weights = summarize_values(ctx, part_of(params.weights(), entry));
    const ValueSummary gradient = summarize_values(ctx, part_of(params.gradients(), entry));
    if (weights.finite() && gradient.finite()) continue;
    result.push_back(
        {{"name", entry.name}, {"weights", json_of(weights, elements)}, {"gradient", json_of(gradient, elements)}});
  }
  return result;
}

/// Collects what launches leave behind, until it has seen enough.
class Findings {
 public:
  /// The gradient with the largest element, and the launch that gave it that.
  struct Largest {
    double magnitude = 0;
    std::string parameter, op;
    std::int64_t launch = 0;
  };

  void look(const StepWatcher::Launched& launched) {
    if (events_.size() > kMostEvents) return;
    Json event;
    Json others = Json::array();
    std::string text;
    for (const StepWatcher::Watched* tensor : launched.tensors) {
      if (!is_floating(tensor->view.dtype)) continue;
      const auto key = std::pair(tensor->name, tensor->ordinal);
      if (known_.contains(key)) continue;
      const ValueSummary values = summarize_values(launched.inner, tensor->view);
      if (values.finite()) {
        const double magnitude = std::max(std::abs(values.min), std::abs(values.max));
        if (magnitude > largest_.magnitude && tensor->name == "gradient of " + tensor->parameter) {
          largest_ = {magnitude, tensor->parameter, launched.kernel, launched.number};
        }
        others.push_back(json_of(*tensor, values));
        continue;
      }
      known_.insert(key);
      event["tensors"].push_back(json_of(*tensor, values));
      if (text.empty()) {
        text =
            fmt::format("{} wrote {} of \"{}\" {} {}", launched.kernel, text_of(values, tensor->view.shape.elements()),
                        tensor->name, tensor->view.shape.str(), name_of(tensor->view.dtype));
      }
    }
    if (event.empty()) return;
    Json found;
    found["launch"] = launched.number;
    found["op"] = launched.kernel;
    found.update(event);
    if (events_.empty()) {
      // Which parameter a value went through says more than the name of an activation.
      for (const StepWatcher::Watched* tensor : launched.tensors) {
        if (tensor->parameter.empty()) continue;
        found["parameter"] = tensor->parameter;
        text += fmt::format(", at parameter {}", tensor->parameter);
        break;
      }
      found["finite"] = std::move(others);
      text_ = fmt::format("op {}", text);
    }
    events_.push_back(std::move(found));
  }
  [[nodiscard]] const std::vector<Json>& events() const { return events_; }
  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] const Largest& largest() const { return largest_; }

 private:
  std::set<std::pair<std::string, int>> known_;
  std::vector<Json> events_;
  std::string text_;
  Largest largest_;
};

}  // namespace

std::string first_bad_name(const ParameterStore& params, std::int64_t first_bad) {
  if (first_bad == kNothingBad) return {};
  if (first_bad == kLossBad) return "loss";
  for (const ParameterStore::Entry& entry : params.entries()) {
    const std::int64_t index = first_bad - entry.offset;
    if (first_bad >= 0 && index >= 0 && index < entry.stored.elements()) {
      return fmt::format("gradient of {} [{}]", entry.name, index);
    }
  }
  return "gradient norm";
}

std::string divergence_advice(const OptimizerConfig& optimizer, const Schedule& schedule) {
  return fmt::format(
      "lower optimizer.lr (now {:.3g}), {} optimizer.clip (now {}), or lengthen schedule.warmup (now {}), "
      "and start again",
      schedule.base, optimizer.clip > 0 ? "lower" : "set",
      optimizer.clip > 0 ? fmt::format("{:.3g}", optimizer.clip) : "0: off", schedule.warmup);
}

std::vector<BadParameter> bad_parameters(const Context& ctx, const ParameterStore& params) {
  std::vector<BadParameter> result;
  const std::pair<const Tensor*, const char*> buffers[] = {{&params.weights(), "weights"},
                                                           {&params.first_moments(), "first moments"},
                                                           {&params.second_moments(), "second moments"}};
  for (const auto& [flat, name] : buffers) {
    if (!*flat || summarize_values(ctx, flat->view()).finite()) continue;
    for (const ParameterStore::Entry& entry : params.entries()) {
      const ValueSummary values = summarize_values(ctx, part_of(*flat, entry));
      if (!values.finite()) result.push_back({entry.name, name, values});
    }
  }
  return result;
}

NumericsReport report_parameters(const Context& ctx, const StepParts& parts, const std::vector<BadParameter>& bad) {
  NumericsReport report;
  report.json = header(ctx, parts, read_state(ctx));
  for (const BadParameter& each : bad) {
    const std::int64_t elements = parts.params->find(each.name)->stored.elements();
    report.json["parameters"].push_back(
        {{"name", each.name}, {"buffer", each.buffer}, {"values", json_of(each.values, elements)}});
    if (report.origin.empty()) {
      report.origin = fmt::format("{} of parameter {} hold {}", each.buffer, each.name, text_of(each.values, elements));
    }
  }
  report.json["origin"] = report.origin;
  report.json = with_finite_numbers(report.json);
  return report;
}

NumericsReport examine_step(const Context& ctx, const std::shared_ptr<AddressRange>& range, const StepParts& parts) {
  const StepState state = read_state(ctx);
  require(state.skipped_in_row >= kMostSkippedInRow, "examine_step: {} steps were skipped in a row, expected {}",
          state.skipped_in_row, kMostSkippedInRow);
  // A parameter that is not finite explains all that follows.
  if (const std::vector<BadParameter> bad = bad_parameters(ctx, *parts.params); !bad.empty()) {
    return report_parameters(ctx, parts, bad);
  }
  NumericsReport report;
  report.json = header(ctx, parts, state);
  report.json["first_bad"] = first_bad_name(*parts.params, state.first_bad);

  Findings findings;
  ctx.stream->zero(parts.params->gradients().mutable_view().data, parts.params->gradients().bytes());
  StepWatcher watcher(*parts.params, [&](const StepWatcher::Launched& launched) { findings.look(launched); });
  watcher.set_clears(true);
  StepParts watched = parts;
  watched.intercept = [&](const Context& inner) {
    return watcher.watch(parts.intercept ? parts.intercept(inner) : inner);
  };
  const std::int64_t points = parts.task->points_at(state.step);
  StepGraph graph(ctx, range, "numerics check",
                  [&watched, points](const Context& step) { train_step(step, watched, points); });
  graph.plan();
  graph.run_eager();
  ctx.stream->synchronize();

  const std::vector<Json>& events = findings.events();
  // In float64 the partial sums of the norm are the first to overflow.
  if (events.empty() || events.front().at("op") == clip_norm.name()) {
    const Findings::Largest& largest = findings.largest();
    report.json["largest_gradient"] = {{"parameter", largest.parameter},
                                       {"magnitude", largest.magnitude},
                                       {"op", largest.op},
                                       {"launch", largest.launch}};
    report.origin = fmt::format(
        "every value is finite, but the square of {} is beyond the range of {}; the largest gradient, {:.4g}, is in "
        "that of {}, written by op {}",
        first_bad_name(*parts.params, state.first_bad), name_of(ctx.stream_dtype()), largest.magnitude,
        largest.parameter, largest.op);
  } else {
    report.origin = findings.text();
    report.json["first"] = events.front();
    report.json["then"] = Json(std::vector<Json>(events.begin() + 1, events.end()));
  }
  report.json["parameters"] = parameters_json(ctx, *parts.params);
  report.json["origin"] = report.origin;
  report.json = with_finite_numbers(report.json);
  return report;
}

}  // namespace graft
