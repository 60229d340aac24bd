#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/task.h"

namespace graft {

/// The strategies of tasks/linear_strategy.h by name: random_quadrants, opposite_quadrants, orthogonal_query,
/// overlapping, half_subspace, skewed, scaled_x_<s> and scaled_y_<s> for s in 0.333, 0.5, 2 and 3, noisy.
[[nodiscard]] std::vector<std::string> linear_strategy_names();

/// The task that evaluates a model of linear regression on such prompts: all dimensions, `points` points. Where queries
/// are not the context's points, a prompt is one sequence for every scored position: its context, at that position the
/// query, and behind it points that a causal model's prediction there cannot depend on. prompt() then has `queries`.
/// Everything is a function of seed and example; no number depends on the size of a batch.
/// Null for a name that linear_strategy_names() does not list.
[[nodiscard]] std::unique_ptr<Task> make_linear_strategy(std::string_view name, int dim, std::int64_t points);

}  // namespace graft
