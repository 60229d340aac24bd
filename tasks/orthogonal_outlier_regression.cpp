#include "tasks/orthogonal_outlier_regression.h"

#include <fmt/format.h>

#include <cstddef>
#include <memory>

#include "tasks/outlier_task.h"

namespace graft {

std::string OrthogonalOutlierRegression::text() const {
  return fmt::format(
      "orthogonal-outlier regression: y = <w, x>, w and x ~ N(0, I_{}); an outlier's tokens are {}", dim,
      variant == OrthogonalOutliers::Paper ? "vectors of a plane orthogonal to w" : "one pair of vectors for a prompt");
}

std::string OrthogonalOutlierRegression::text_of(const std::vector<float>& parameters) const {
  std::string text;
  const auto append = [&](const char* name, std::size_t row) {
    const auto width = static_cast<std::size_t>(dim);
    text += (text.empty() ? "" : "\n") + named_numbers(name, std::span(parameters).subspan(row * width, width));
  };
  append("w", 0);
  if (variant == OrthogonalOutliers::Paper) {
    append("u", 1);
    append("v", 2);
  } else {
    append("outliers' x", 1);
    append("outliers' y", 4);
  }
  return text;
}

namespace {

std::vector<SettingKey> orthogonal_keys() {
  std::vector<SettingKey> keys = outlier_keys(3, 101, 0.5);  // a plane beside w takes three dimensions
  keys.push_back(SettingKey::text("task.variant",
                                  "outliers as the paper has them (a plane orthogonal to the prompt's weights, new "
                                  "coefficients for each) or as its code (unrelated planes, one outlier a prompt)")
                     .with_default("paper")
                     .one_of({"paper", "code"}));
  return keys;
}

const RegisterSettings keys{{
    .table = "task",
    .owner = "orthogonal_outlier_regression",
    .doc = "linear regression among outliers orthogonal to the weights",
    .keys = with_curriculum(orthogonal_keys(), {.points_start = 26, .points_increment = 5}),
    .checks = {check_curriculum, check_outlier_probability},
}};

const RegisterTask registered{
    {"orthogonal_outlier_regression", [](const Settings& settings) -> std::unique_ptr<Task> {
       const double probability = settings.number("task.outlier_probability");
       return std::make_unique<OutlierTask<OrthogonalOutlierRegression>>(
           OrthogonalOutlierRegression{
               static_cast<int>(settings.integer("task.dim")), probability,
               OutlierMask{static_cast<float>(probability)},
               settings.text("task.variant") == "paper" ? OrthogonalOutliers::Paper : OrthogonalOutliers::Code},
           curriculum_of(settings), settings.integer("task.points"), sample_orthogonal_outlier_regression);
     }}};

const Register cpu_sampler{sample_orthogonal_outlier_regression, Backend::Cpu,
                           sample_prompts_cpu<OrthogonalOutlierRegression>};

}  // namespace
}  // namespace graft
