#include "tasks/many_outlier_regression.h"

#include <fmt/format.h>

#include <memory>

#include "tasks/outlier_task.h"

namespace graft {

std::string ManyOutlierRegression::text() const {
  return fmt::format("many-outlier regression: y = <w, x>, w and x ~ N(0, I_{}); an outlier is x = (1, ..., 1), y = 1",
                     dim);
}

std::string ManyOutlierRegression::text_of(const std::vector<float>& parameters) const {
  return named_numbers("w", parameters);
}

namespace {

const RegisterSettings keys{{
    .table = "task",
    .owner = "many_outlier_regression",
    .doc = "linear regression in which most points are one and the same outlier",
    .keys = with_curriculum(outlier_keys(1, 512, 0.9),
                            {.dims_start = 4, .points_start = 12, .points_increment = 2, .points_interval = 200}),
    .checks = {check_curriculum, check_outlier_probability},
}};

const RegisterTask registered{{"many_outlier_regression", [](const Settings& settings) -> std::unique_ptr<Task> {
                                 const double probability = settings.number("task.outlier_probability");
                                 return std::make_unique<OutlierTask<ManyOutlierRegression>>(
                                     ManyOutlierRegression{static_cast<int>(settings.integer("task.dim")), probability,
                                                           OutlierMask{static_cast<float>(probability)}},
                                     curriculum_of(settings), settings.integer("task.points"),
                                     sample_many_outlier_regression);
                               }}};

const Register cpu_sampler{sample_many_outlier_regression, Backend::Cpu, sample_prompts_cpu<ManyOutlierRegression>};

}  // namespace
}  // namespace graft
