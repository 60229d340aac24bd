#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/linear_regression.h"
#include "tasks/regression_task.h"

namespace graft {

/// Linear regression, and as suites of its evaluation the prompt strategies of tasks/linear_strategy.h.
class LinearRegressionTask final : public RegressionTask<LinearRegression> {
 public:
  using RegressionTask::RegressionTask;
  [[nodiscard]] std::vector<std::string> suites() const override;
  [[nodiscard]] std::unique_ptr<Task> suite(std::string_view name) const override;
  [[nodiscard]] std::vector<std::string> baselines() const override;
  [[nodiscard]] std::string description() const override;
};

}  // namespace graft
