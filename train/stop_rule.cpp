#include "train/stop_rule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "engine/error.h"
#include "engine/settings.h"
#include "tasks/task.h"
#include "train/config.h"

namespace graft {
namespace {

constexpr const char* kAbove = "eval.stop_above";
constexpr const char* kBelow = "eval.stop_below";
constexpr const char* kFrom = "eval.stop_from";
constexpr const char* kTo = "eval.stop_to";

/// A rule that says nothing, two things, or something about positions that the task does not have.
void check_stop_rule(const Settings& settings, SettingMistakes& mistakes) {
  const bool above = settings.has(kAbove);
  const bool below = settings.has(kBelow);
  if (above && below) mistakes.add({kBelow}, fmt::format("given together with {}, expected one of the two", kAbove));
  for (const char* key : {kFrom, kTo}) {
    if (settings.has(key) && !above && !below) {
      mistakes.add({key}, fmt::format("has no effect without {} or {}", kAbove, kBelow));
    }
  }
  if ((above || below) && settings.integer("eval.every") == 0) {
    mistakes.add({above ? kAbove : kBelow, "eval.every"},
                 "has no effect with eval.every = 0; expected evaluations while the run goes on");
  }
  if (settings.has(kFrom) && settings.has(kTo) && settings.integer(kFrom) > settings.integer(kTo)) {
    mistakes.add({kFrom, kTo},
                 fmt::format("got {}, expected at most {} = {}", settings.integer(kFrom), kTo, settings.integer(kTo)));
    return;
  }
  if (!settings.has(kFrom) && !settings.has(kTo)) return;
  const std::vector<std::string> tasks = task_names();
  if (std::find(tasks.begin(), tasks.end(), settings.text("task.name")) == tasks.end()) return;
  std::int64_t positions = 0;
  try {
    positions = make_task(settings)->final_points();
  } catch (const ArgumentError&) {
    return;  // the task's own conditions say what is wrong
  }
  for (const char* key : {kTo, kFrom}) {
    if (!settings.has(key) || settings.integer(key) < positions) continue;
    mistakes.add({key}, fmt::format("got {}, expected at most {}, the last position of an evaluation",
                                    settings.integer(key), positions - 1));
  }
}

const RegisterSettings checks{{
    .table = "eval",
    .owner = "",
    .doc = "conditions between the keys that end a run early",
    .checks = {check_stop_rule},
}};

}  // namespace

StopRule StopRule::of(const RunConfig& config) {
  const EvalTable& eval = config.eval;
  StopRule rule{eval.stop_above, eval.stop_below, eval.stop_from.value_or(0), eval.stop_to};
  if (rule.given() && !eval.stop_from && !eval.stop_to) {
    rule.answers = !make_task(config.settings)->answer_points().empty();
  }
  return rule;
}

double StopRule::value(const std::vector<double>& means, std::optional<double> accuracy) const {
  if (answers) return accuracy.value_or(std::nan(""));
  const auto size = static_cast<std::int64_t>(means.size());
  const std::int64_t end = std::min(last.value_or(size - 1) + 1, size);
  double sum = 0;
  int count = 0;
  for (std::int64_t i = first; i < end; ++i) {
    const double mean = means[static_cast<std::size_t>(i)];
    if (std::isnan(mean)) continue;
    sum += mean;
    ++count;
  }
  return count == 0 ? std::nan("") : sum / count;
}

bool StopRule::decided(const std::vector<double>& means, std::optional<double> accuracy) const {
  if (!given()) return false;
  const double now = value(means, accuracy);
  return above ? now >= *above : now <= *below;  // false for NaN
}

std::string StopRule::str() const {
  const std::string what =
      answers ? "accuracy" : fmt::format("mean over positions {}..{}", first, last ? std::to_string(*last) : "");
  return fmt::format("{} {} {}", what, above ? "at least" : "at most", above.value_or(below.value_or(0)));
}

}  // namespace graft
