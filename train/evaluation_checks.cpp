// Conditions between a task and the evaluations that a configuration asks for.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/task.h"
#include "train/config_file.h"
#include "train/evaluation.h"
#include "train/suggest.h"

namespace graft {
namespace {

constexpr const char* kSuites = "eval.suites";

/// Every name of eval.suites is one of the task's, once.
void check_suites(const Settings& settings, SettingMistakes& mistakes) {
  const std::vector<std::string>& wanted = settings.texts(kSuites);
  if (wanted.empty() || !settings.has("task.name")) return;
  const std::vector<std::string> tasks = task_names();
  const std::string& task = settings.text("task.name");
  if (std::find(tasks.begin(), tasks.end(), task) == tasks.end()) return;  // reported where it stands
  std::vector<std::string> known;
  try {
    known = make_task(settings)->suites();
  } catch (const ArgumentError&) {
    return;  // the task's own conditions say what is wrong
  }
  std::set<std::string> seen;
  for (const std::string& name : wanted) {
    if (name == kStandardSuite) {
      mistakes.add({kSuites}, fmt::format("got \"{}\", which every evaluation has; leave it out", kStandardSuite));
    } else if (std::find(known.begin(), known.end(), name) == known.end()) {
      const std::string nearest = nearest_name(name, known);
      mistakes.add({kSuites}, fmt::format("got {}, expected {}{}", quoted_text(shown(name)),
                                          known.empty() ? fmt::format("none: task {} has no others than the standard "
                                                                      "evaluation",
                                                                      task)
                                                        : fmt::format("some of {}", fmt::join(known, ", ")),
                                          nearest.empty() ? "" : fmt::format("; did you mean `{}`?", nearest)));
    } else if (!seen.insert(name).second) {
      mistakes.add({kSuites}, fmt::format("got {} a second time, expected it once", quoted_text(name)));
    }
  }
}

const RegisterSettings checks{{
    .table = "eval",
    .owner = "",
    .doc = "conditions between the task and its evaluations",
    .checks = {check_suites},
}};

}  // namespace
}  // namespace graft
