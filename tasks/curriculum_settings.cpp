#include "tasks/curriculum_settings.h"

#include <fmt/format.h>

#include <iterator>
#include <string>
#include <utility>

namespace graft {

std::vector<SettingKey> curriculum_keys(const CurriculumDefaults& defaults) {
  constexpr double kMost = 1e9;
  constexpr double kMostIncrement = 1e6;  // times the most steps of a run, it still fits into 64 bits
  return {
      SettingKey::boolean("task.curriculum.enabled", "start with fewer dimensions and points and grow them in stages")
          .with_default(defaults.enabled),
      SettingKey::integer("task.curriculum.dims_start", "input dimensions at step 0; the others are set to 0")
          .with_default(defaults.dims_start)
          .between(1, kMost),
      SettingKey::integer("task.curriculum.dims_end", "input dimensions the curriculum ends with")
          .default_from("task.dim")
          .between(1, kMost),
      SettingKey::integer("task.curriculum.dims_increment", "dimensions added each dims_interval steps")
          .with_default(defaults.dims_increment)
          .between(0, kMostIncrement),
      SettingKey::integer("task.curriculum.dims_interval", "steps from one growth of the dimensions to the next")
          .with_default(defaults.dims_interval)
          .between(1, kMost)
          .in("steps"),
      SettingKey::integer("task.curriculum.points_start", "points of a prompt at step 0")
          .with_default(defaults.points_start)
          .between(1, kMost),
      SettingKey::integer("task.curriculum.points_end", "points of a prompt the curriculum ends with")
          .default_from("task.points")
          .between(1, kMost),
      SettingKey::integer("task.curriculum.points_increment", "points added each points_interval steps")
          .with_default(defaults.points_increment)
          .between(0, kMostIncrement),
      SettingKey::integer("task.curriculum.points_interval", "steps from one growth of the prompts to the next")
          .with_default(defaults.points_interval)
          .between(1, kMost)
          .in("steps"),
  };
}

std::vector<SettingKey> with_curriculum(std::vector<SettingKey> keys, const CurriculumDefaults& defaults) {
  std::vector<SettingKey> more = curriculum_keys(defaults);
  keys.insert(keys.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  return keys;
}

void check_curriculum(const Settings& settings, SettingMistakes& mistakes) {
  if (!settings.boolean("task.curriculum.enabled")) return;
  const auto check = [&](const std::string& what, const std::string& limit_key) {
    const std::string start_key = "task.curriculum." + what + "_start";
    const std::string end_key = "task.curriculum." + what + "_end";
    const std::int64_t start = settings.integer(start_key);
    const std::int64_t end = settings.integer(end_key);
    const std::int64_t limit = settings.integer(limit_key);
    if (end > limit) {
      mistakes.add({end_key, limit_key},
                   fmt::format("got {}, expected at most {} = {}: a curriculum cannot grow beyond the task", end,
                               limit_key, limit));
    }
    if (start > end) {
      mistakes.add({start_key, end_key, limit_key},
                   fmt::format("got {}, expected at most {} = {}{}", start, end_key, end,
                               settings.given(start_key)
                                   ? ""
                                   : "; set it, or switch the curriculum off with task.curriculum.enabled = false"));
    }
  };
  check("dims", "task.dim");
  check("points", "task.points");
}

Curriculum curriculum_of(const Settings& settings) {
  Curriculum curriculum;
  curriculum.enabled = settings.boolean("task.curriculum.enabled");
  const auto read = [&](const std::string& what, const std::string& full_key) {
    const std::string prefix = "task.curriculum." + what;
    const std::int64_t full = settings.integer(full_key);
    if (!curriculum.enabled) return Ramp::constant(full);
    return Ramp{settings.integer(prefix + "_start"), settings.integer(prefix + "_end"),
                settings.integer(prefix + "_increment"), settings.integer(prefix + "_interval")};
  };
  curriculum.dims = read("dims", "task.dim");
  curriculum.points = read("points", "task.points");
  return curriculum;
}

}  // namespace graft
