// Conditions between a task and the model that is to learn it.

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/error.h"
#include "models/model_config.h"
#include "tasks/task.h"

namespace graft {
namespace {

/// model.position_rows against the longest prompt of the task.
void check_positions(const Settings& settings, SettingMistakes& mistakes) {
  const std::int64_t rows = settings.integer("model.position_rows");
  if (rows == 0) return;
  if (settings.has("model.preset") && !is_registered_preset(settings.text("model.preset"))) return;
  if (!settings.has("model.preset") && !settings.has("model.pattern")) return;
  if (model_config(settings).positions == Positions::None || !settings.has("task.name")) return;
  const std::vector<std::string> tasks = task_names();
  if (std::find(tasks.begin(), tasks.end(), settings.text("task.name")) == tasks.end()) return;
  std::int64_t tokens = 0;
  try {
    tokens = make_task(settings)->shape().max_tokens;
  } catch (const ArgumentError&) {
    return;  // the task's own conditions say what is wrong
  }
  if (rows >= tokens) return;
  mistakes.add({"model.position_rows", "task.points"},
               fmt::format("got {}, expected at least the {} tokens of the longest prompt, or 0", rows, tokens));
}

const RegisterSettings checks{{
    .table = "model",
    .owner = "",
    .doc = "conditions between the model and the task",
    .checks = {check_positions},
}};

}  // namespace
}  // namespace graft
