#include "tasks/relu_2nn_regression.h"

#include <fmt/format.h>

#include <memory>

#include "tasks/linear_regression_task.h"
#include "tasks/regression_task.h"

namespace graft {
namespace {

/// A prompt's network has to fit into a GPU's shared memory, beside a tile of inputs: 96 KiB everywhere.
constexpr std::int64_t kMostWeights = 16384;

class Relu2nnRegressionTask final : public RegressionTask<Relu2nnRegression> {
 public:
  using RegressionTask::RegressionTask;
  /// linear_regression: what the model makes of a simpler function than those it was trained on, with the same
  /// dimension and points. Source: Garg et al. 2022, section 4.
  [[nodiscard]] std::vector<std::string> suites() const override { return {"linear_regression"}; }
  [[nodiscard]] std::unique_ptr<Task> suite(std::string_view name) const override {
    if (name != "linear_regression") return Task::suite(name);  // throws
    return std::make_unique<LinearRegressionTask>(LinearRegression{law().dim}, curriculum(), final_points(),
                                                  sample_linear_regression);
  }
  [[nodiscard]] std::vector<std::string> baselines() const override {
    return {"zero", "least_squares", "knn3", "averaging", "two_layer_net"};
  }
  [[nodiscard]] std::string truth_text(const Prompt& prompt) const override {
    const auto hidden = static_cast<std::size_t>(law().hidden);
    return fmt::format("W [{}, {}] (--json prints it), {}", hidden, law().dim,
                       named_numbers("v", std::span(prompt.truth).last(hidden)));
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format(
        "ReLU network regression: y = sqrt(2/{0}) <v, relu(W x)>, W [{0}, {1}], v and x ~ N(0, 1), {2} "
        "points",
        law().hidden, law().dim, final_points());
  }
};

void check_weights(const Settings& settings, SettingMistakes& mistakes) {
  const std::int64_t hidden = settings.integer("task.hidden");
  const std::int64_t dim = settings.integer("task.dim");
  if (hidden * (dim + 1) <= kMostWeights) return;
  mistakes.add({"task.hidden", "task.dim"},
               fmt::format("got {} units of {} + 1 weights = {}, expected at most {} weights, so that a network fits "
                           "into a GPU's shared memory",
                           hidden, dim, hidden * (dim + 1), kMostWeights));
}

const RegisterSettings keys{{
    .table = "task",
    .owner = "relu_2nn_regression",
    .doc = "y = a random two-layer ReLU network of x",
    .keys = with_curriculum(
        {
            SettingKey::integer("task.dim", "dimension of an input").with_default(20).between(1, 1024),
            SettingKey::integer("task.points", "points of a prompt, the last one a query")
                .with_default(101)
                .between(1, 8192),
            SettingKey::integer("task.hidden", "hidden units of the network")
                .with_default(100)
                .between(1, static_cast<double>(kMostWeights)),
        },
        {.points_start = 26, .points_increment = 5}),
    .checks = {check_curriculum, check_weights},
}};

const RegisterTask registered{{"relu_2nn_regression", [](const Settings& settings) -> std::unique_ptr<Task> {
                                 return std::make_unique<Relu2nnRegressionTask>(
                                     Relu2nnRegression{static_cast<int>(settings.integer("task.dim")),
                                                       static_cast<int>(settings.integer("task.hidden"))},
                                     curriculum_of(settings), settings.integer("task.points"),
                                     sample_relu_2nn_regression);
                               }}};

const Register cpu_sampler{sample_relu_2nn_regression, Backend::Cpu, sample_prompts_cpu<Relu2nnRegression>};

}  // namespace
}  // namespace graft
