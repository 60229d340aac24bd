#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

#include "engine/settings.h"

namespace graft {

/// For tasks whose functions look at a few coordinates of the active dimensions: the number under `key` must not be
/// above task.dim, nor above what the curriculum starts with. `what` says what there are that many of.
inline void check_subset_size(const Settings& settings, SettingMistakes& mistakes, const std::string& key,
                              const std::string& what) {
  const std::int64_t size = settings.integer(key);
  const std::int64_t dim = settings.integer("task.dim");
  if (size > dim) {
    mistakes.add({key, "task.dim"}, fmt::format("got {}, expected at most task.dim = {} {}", size, dim, what));
    return;
  }
  if (!settings.boolean("task.curriculum.enabled")) return;
  const std::int64_t start = settings.integer("task.curriculum.dims_start");
  const std::int64_t end = settings.integer("task.curriculum.dims_end");
  const std::int64_t active = start < end ? start : end;
  if (size > active) {
    mistakes.add({key, "task.curriculum.dims_start"},
                 fmt::format("got {}, expected at most {} {}: the dimensions that the curriculum starts with", size,
                             active, what));
  }
}

}  // namespace graft
