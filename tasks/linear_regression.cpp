#include "tasks/linear_regression.h"

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "tasks/linear_regression_task.h"
#include "tasks/linear_strategy_task.h"

namespace graft {

std::vector<std::string> LinearRegressionTask::suites() const { return linear_strategy_names(); }

std::unique_ptr<Task> LinearRegressionTask::suite(std::string_view name) const {
  std::unique_ptr<Task> task = make_linear_strategy(name, law().dim, final_points());
  return task != nullptr ? std::move(task) : Task::suite(name);  // which throws
}

std::vector<std::string> LinearRegressionTask::baselines() const {
  return {"zero", "least_squares", "knn3", "averaging"};
}

std::string LinearRegressionTask::description() const {
  return fmt::format("linear regression: y = <w, x>, w and x ~ N(0, I_{}), {} points", law().dim, final_points());
}

namespace {

const RegisterSettings keys{{
    .table = "task",
    .owner = "linear_regression",
    .doc = "y = <w, x> with w, x ~ N(0, I)",
    .keys = with_curriculum(
        {
            SettingKey::integer("task.dim", "dimension of an input").with_default(20).between(1, 1024),
            SettingKey::integer("task.points", "points of a prompt, the last one a query")
                .with_default(41)
                .between(1, 8192),
        },
        {}),
    .checks = {check_curriculum},
}};

const RegisterTask registered{{"linear_regression", [](const Settings& settings) -> std::unique_ptr<Task> {
                                 return std::make_unique<LinearRegressionTask>(
                                     LinearRegression{static_cast<int>(settings.integer("task.dim"))},
                                     curriculum_of(settings), settings.integer("task.points"),
                                     sample_linear_regression);
                               }}};

const Register cpu_sampler{sample_linear_regression, Backend::Cpu, sample_prompts_cpu<LinearRegression>};

}  // namespace
}  // namespace graft
