#include "tasks/sparse_linear_regression.h"

#include <fmt/format.h>

#include <memory>

#include "tasks/regression_task.h"
#include "tasks/subset_settings.h"

namespace graft {
namespace {

class SparseLinearRegressionTask final : public RegressionTask<SparseLinearRegression> {
 public:
  using RegressionTask::RegressionTask;
  [[nodiscard]] std::vector<std::string> baselines() const override {
    return {"zero",      "least_squares", "knn3",        "averaging",   "lasso_1",
            "lasso_0.1", "lasso_0.01",    "lasso_0.001", "lasso_0.0001"};
  }
  [[nodiscard]] std::string truth_text(const Prompt& prompt) const override {
    std::string text = "y =";
    for (std::size_t j = 0; j < prompt.truth.size(); ++j) {
      if (prompt.truth[j] != 0) text += fmt::format(" {:+.3f} x[{}]", prompt.truth[j], j);
    }
    return text;
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format(
        "sparse linear regression: y = <w, x>, {} of {} weights ~ N(0, 1), the others 0, x ~ N(0, I), {} "
        "points",
        law().sparsity, law().dim, final_points());
  }
};

void check_sparsity(const Settings& settings, SettingMistakes& mistakes) {
  check_subset_size(settings, mistakes, "task.sparsity", "weights that are not 0");
}

const RegisterSettings keys{{
    .table = "task",
    .owner = "sparse_linear_regression",
    .doc = "y = <w, x> with all but a few weights 0",
    .keys = with_curriculum(
        {
            SettingKey::integer("task.dim", "dimension of an input").with_default(20).between(1, 1024),
            SettingKey::integer("task.points", "points of a prompt, the last one a query")
                .with_default(101)
                .between(1, 8192),
            SettingKey::integer("task.sparsity", "weights that are not 0, among the active dimensions")
                .with_default(3)
                .between(1, 1024),
        },
        {.points_start = 26, .points_increment = 5}),
    .checks = {check_curriculum, check_sparsity},
}};

const RegisterTask registered{{"sparse_linear_regression", [](const Settings& settings) -> std::unique_ptr<Task> {
                                 return std::make_unique<SparseLinearRegressionTask>(
                                     SparseLinearRegression{static_cast<int>(settings.integer("task.dim")),
                                                            static_cast<int>(settings.integer("task.sparsity"))},
                                     curriculum_of(settings), settings.integer("task.points"),
                                     sample_sparse_linear_regression);
                               }}};

const Register cpu_sampler{sample_sparse_linear_regression, Backend::Cpu, sample_prompts_cpu<SparseLinearRegression>};

}  // namespace
}  // namespace graft
