#pragma once
// The keys of [task.curriculum], shared by the regression tasks; each brings its own defaults.

#include <cstdint>
#include <vector>

#include "engine/settings.h"
#include "tasks/task.h"

namespace graft {

/// Input dimensions and points of a prompt over a run. Without a curriculum both are at their end from step 0.
struct Curriculum {
  bool enabled = false;
  Ramp dims;
  Ramp points;
};

/// What a task uses where a configuration says nothing. The ends are task.dim and task.points.
struct CurriculumDefaults {
  bool enabled = true;
  std::int64_t dims_start = 5;
  std::int64_t dims_increment = 1;
  std::int64_t dims_interval = 2000;
  std::int64_t points_start = 11;
  std::int64_t points_increment = 2;
  std::int64_t points_interval = 2000;
};

/// Keys task.curriculum.enabled, dims_start, dims_end (default: task.dim), dims_increment, dims_interval, points_start,
/// points_end (default: task.points), points_increment and points_interval.
[[nodiscard]] std::vector<SettingKey> curriculum_keys(const CurriculumDefaults& defaults);

/// `keys` followed by the curriculum's: for a task's declaration in one expression.
[[nodiscard]] std::vector<SettingKey> with_curriculum(std::vector<SettingKey> keys, const CurriculumDefaults& defaults);

/// start <= end and end <= task.dim (task.points); nothing when the curriculum is off. To be listed in the checks of
/// every group that declares curriculum_keys().
void check_curriculum(const Settings& settings, SettingMistakes& mistakes);

/// Reads the keys. With the curriculum off, start and end are task.dim and task.points.
[[nodiscard]] Curriculum curriculum_of(const Settings& settings);

}  // namespace graft
