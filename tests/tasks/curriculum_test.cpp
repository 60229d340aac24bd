#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "tasks/curriculum_settings.h"
#include "tasks/task.h"
#include "train/config.h"

namespace graft::test {
namespace {

std::unique_ptr<Task> task_with(const std::vector<std::string>& overrides) {
  const char* text = "[task]\nname = \"linear_regression\"\n[model]\npreset = \"transformer\"\n";
  return make_task(parse_config(text, "curriculum.toml", overrides).settings);
}

TEST_CASE("curriculum: a ramp grows in stages and stops at its end") {
  const Ramp ramp{11, 41, 2, 2000};
  CHECK(ramp.at(0) == 11);
  CHECK(ramp.at(1999) == 11);
  CHECK(ramp.at(2000) == 13);
  CHECK(ramp.at(3999) == 13);
  CHECK(ramp.at(28000) == 39);
  CHECK(ramp.at(29999) == 39);
  CHECK(ramp.at(30000) == 41);
  CHECK(ramp.at(500000) == 41);
  CHECK(ramp.at(std::numeric_limits<std::uint32_t>::max()) == 41);
  CHECK(Ramp{4, 20, 5, 10}.at(30) == 19);  // an increment that does not divide the distance
  CHECK(Ramp{4, 20, 5, 10}.at(40) == 20);
  CHECK(Ramp{3, 9, 0, 1}.at(1000) == 3);
  CHECK(Ramp::constant(7).at(0) == 7);
  CHECK(Ramp::constant(7).at(123456) == 7);
}

TEST_CASE("curriculum: linear regression's defaults are the study's") {
  const std::unique_ptr<Task> task = task_with({});
  for (std::uint64_t step = 0; step < 40000; step += 125) {
    const auto stage = static_cast<std::int64_t>(step / 2000);
    CHECK(task->dims_at(step) == std::min<std::int64_t>(5 + stage, 20));
    CHECK(task->points_at(step) == std::min<std::int64_t>(11 + 2 * stage, 41));
  }
  CHECK(task->dims_at(29999) == 19);
  CHECK(task->dims_at(30000) == 20);
  CHECK(task->points_at(29999) == 39);
  CHECK(task->points_at(30000) == 41);
  CHECK(task->final_points() == 41);
  CHECK(task->shape().input_width == 20);
  CHECK(task->shape().max_tokens == 82);
}

TEST_CASE("curriculum: off, everything is there from the first step") {
  const std::unique_ptr<Task> task = task_with({"task.curriculum.enabled=false", "task.dim=3", "task.points=8"});
  CHECK(task->dims_at(0) == 3);
  CHECK(task->points_at(0) == 8);
  CHECK(task->shape().max_tokens == 16);
}

TEST_CASE("curriculum: its ends follow the task, and may be lower") {
  const std::unique_ptr<Task> longer =
      task_with({"task.points=101", "task.curriculum.points_start=26", "task.curriculum.points_increment=5"});
  CHECK(longer->points_at(29999) == 96);
  CHECK(longer->points_at(30000) == 101);
  const std::unique_ptr<Task> lower = task_with({"task.curriculum.dims_end=9", "task.curriculum.points_end=12"});
  CHECK(lower->dims_at(1000000) == 9);
  CHECK(lower->points_at(1000000) == 12);
  CHECK(lower->final_points() == 41);
}

TEST_CASE("curriculum: one that outgrows its task, or starts beyond its end, is refused") {
  CHECK_THROWS_WITH_AS(static_cast<void>(task_with({"task.curriculum.dims_end=21"})),
                       doctest::Contains("task.curriculum.dims_end"), ConfigError);
  CHECK_THROWS_WITH_AS(static_cast<void>(task_with({"task.curriculum.points_end=42"})),
                       doctest::Contains("task.curriculum.points_end"), ConfigError);
  CHECK_THROWS_WITH_AS(static_cast<void>(task_with({"task.dim=3"})),  // the default start is 5
                       doctest::Contains("task.curriculum.enabled = false"), ConfigError);
  CHECK_THROWS_WITH_AS(static_cast<void>(task_with({"task.curriculum.dims_interval=0"})),
                       doctest::Contains("task.curriculum.dims_interval"), ConfigError);
  CHECK_NOTHROW(static_cast<void>(task_with({"task.dim=3", "task.curriculum.enabled=false"})));
}

}  // namespace
}  // namespace graft::test
